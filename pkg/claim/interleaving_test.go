package claim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
)

// This file explores all interleavings of creators, the Reconciler, the people
// who delete pods, and time, over an in-memory API server: every order of every
// single call to it. It is the real Take and the real Reconcile that run. They
// stop after each call, because each step runs them again from the start: the
// answers they have had so far are played to them again, the next call is
// answered by the state of the moment, and the one after that stops them.
//
// A crash needs no move of its own: it is a run that is never continued, and
// what the others do then is explored like everything else.

// answer is what a call to the API server, the cache or the clock returned.
type answer struct {
	object any
	err    error
}

// suspended is what a run panics with that has made its step.
type suspended struct{}

// run is a run of real code up to its next call.
type run struct {
	state   *state
	answers []answer
	played  int
	stepped bool
}

// call answers one call, by an atomic operation on the state.
func (r *run) call(operation func(*state) answer) answer {
	if r.played == len(r.answers) {
		if r.stepped {
			panic(suspended{})
		}
		r.stepped = true
		r.answers = append(slices.Clip(r.answers), operation(r.state))
	}
	r.played++
	return r.answers[r.played-1]
}

// note answers with local state of a process at its last call: reading it is no step.
func (r *run) note(known func(*state) any) any {
	if r.played == len(r.answers) {
		r.answers = append(slices.Clip(r.answers), answer{object: known(r.state)})
	}
	r.played++
	return r.answers[r.played-1].object
}

func (r *run) now() time.Time {
	return r.note(func(s *state) any { return s.now }).(time.Time)
}

func (r *run) gone(uid types.UID) bool {
	return r.note(func(s *state) any { return slices.Contains(s.gone, uid) }).(bool)
}

// step runs code up to its next call and reports whether it has come to its end.
func (r *run) step(code func()) (ended bool) {
	defer func() {
		if p := recover(); p != nil && p != (suspended{}) {
			panic(p)
		}
	}()
	code()
	return true
}

// store is the API server: linearizable, with resourceVersions and UIDs.
type store struct {
	leases map[string]*coordinationv1.Lease // objects are never changed, only replaced
	pods   map[string]*corev1.Pod
}

func (s store) clone() store { return store{maps.Clone(s.leases), maps.Clone(s.pods)} }

// server is the store as a run's API.
type server struct{ *run }

func notFound(name string) error  { return apierrors.NewNotFound(schema.GroupResource{}, name) }
func conflict(name string) error  { return apierrors.NewConflict(schema.GroupResource{}, name, nil) }
func duplicate(name string) error { return apierrors.NewAlreadyExists(schema.GroupResource{}, name) }

func (s store) get(kind client.Object, name string) answer {
	var object client.Object
	switch kind.(type) {
	case *coordinationv1.Lease:
		if lease, ok := s.leases[name]; ok {
			object = lease
		}
	case *corev1.Pod:
		if pod, ok := s.pods[name]; ok {
			object = pod
		}
	}
	if object == nil {
		return answer{err: notFound(name)}
	}
	return answer{object: object}
}

// into copies an answer into the caller's object.
func (a answer) into(out client.Object) error {
	if a.err != nil {
		return a.err
	}
	switch out := out.(type) {
	case *coordinationv1.Lease:
		a.object.(*coordinationv1.Lease).DeepCopyInto(out)
	case *corev1.Pod:
		a.object.(*corev1.Pod).DeepCopyInto(out)
	}
	return nil
}

func (s server) Get(_ context.Context, key client.ObjectKey, out client.Object, _ ...client.GetOption) error {
	return s.call(func(now *state) answer { return now.store.get(out, key.Name) }).into(out)
}

func (s server) Create(_ context.Context, in client.Object, _ ...client.CreateOption) error {
	return s.call(func(now *state) answer {
		if _, exists := now.leases[in.GetName()]; exists {
			return answer{err: duplicate(in.GetName())}
		}
		return now.create(in)
	}).err
}

func (s *state) create(in client.Object) answer {
	lease := in.DeepCopyObject().(*coordinationv1.Lease)
	s.incarnations++
	lease.ResourceVersion, lease.UID = "1", types.UID(fmt.Sprint("lease-", s.incarnations))
	s.leases[lease.Name] = lease
	return answer{}
}

func (s server) Update(_ context.Context, in client.Object, _ ...client.UpdateOption) error {
	return s.call(func(now *state) answer {
		old, exists := now.leases[in.GetName()]
		switch {
		case !exists && in.GetResourceVersion() != "",
			exists && in.GetResourceVersion() != "" && (old.ResourceVersion != in.GetResourceVersion() || old.UID != in.GetUID()):
			return answer{err: conflict(in.GetName())}
		}
		if !exists {
			return now.create(in)
		}
		lease := in.DeepCopyObject().(*coordinationv1.Lease)
		lease.UID, lease.ResourceVersion = old.UID, old.ResourceVersion+"'"
		now.leases[lease.Name] = lease
		return answer{}
	}).err
}

func (s server) Delete(_ context.Context, in client.Object, opts ...client.DeleteOption) error {
	var o client.DeleteOptions
	o.ApplyOptions(opts)
	return s.call(func(now *state) answer {
		old, exists := now.leases[in.GetName()]
		if !exists {
			return answer{err: notFound(in.GetName())}
		}
		if p := o.Preconditions; p != nil && (*p.UID != old.UID || *p.ResourceVersion != old.ResourceVersion) {
			return answer{err: conflict(in.GetName())}
		}
		delete(now.leases, in.GetName())
		return answer{}
	}).err
}

// cached is the Reconciler's cache: the store as it was some time ago, pods
// and Leases each by a watch of its own.
type cached struct{ *run }

func (c cached) Get(_ context.Context, key client.ObjectKey, out client.Object, _ ...client.GetOption) error {
	return c.call(func(now *state) answer { return now.cache.get(out, key.Name) }).into(out)
}

func (c cached) ByIndex(_, key string) ([]any, error) {
	return c.call(func(now *state) answer {
		var pods []any
		for _, name := range slices.Sorted(maps.Keys(now.cache.pods)) {
			if slices.Contains(podindex.Keys(now.cache.pods[name]), key) {
				pods = append(pods, now.cache.pods[name])
			}
		}
		return answer{object: pods}
	}).object.([]any), nil
}

// creator is a client that creates a pod. The API server sends a review to a guard
// for each UID, and repeats the request with a new UID.
type creator struct {
	pod  string // a line for newPod
	uids []types.UID
	// relabels is set on a client that does not create the pod, but puts back the
	// label that Airflow and the watches select task pods by.
	relabels bool
}

// progress is how far a creator or the Reconciler has come.
type progress struct {
	phase   phase
	attempt int
	started time.Time
	answers []answer
	// dead is set once the API server has given the request up. What the guard
	// does about it may go on.
	dead bool
	req  Request // of the Reconciler
}

type phase int

const (
	idle phase = iota
	running
	admitted
	done
)

// scenario is what can happen, and how often.
type scenario struct {
	creators []creator
	existing []string // pods without a claim, older than all events
	// caches is set if the caches of guards have the pods that are older than
	// GracePeriod. Otherwise, guards have claims only.
	caches bool
	moves
}

// moves is how often something can happen that no creator does.
type moves struct {
	deletions       int
	marks           int // already_checked is set
	unlabellings    int // the label of a task pod is taken off
	expiries        int // time passes, until nothing is in flight any more
	reconciliations int
}

// state is a state of the world.
type state struct {
	store
	cache        store
	now          time.Time
	incarnations int
	known        map[string]*corev1.Pod // to the caches of all guards
	gone         []types.UID            // deletions that the watches have reported
	creators     []progress
	reconciler   progress
	left         moves
	path         []string
}

func (s *state) clone() *state {
	out := *s
	out.store, out.cache = s.store.clone(), s.cache.clone()
	out.gone, out.creators = slices.Clone(s.gone), slices.Clone(s.creators)
	out.path = append(slices.Clip(s.path), "")
	return &out
}

// key is equal for states of the same future.
func (s *state) key() [sha256.Size]byte {
	var b bytes.Buffer
	for _, view := range []store{s.store, s.cache} {
		for _, name := range slices.Sorted(maps.Keys(view.leases)) {
			fingerprint(&b, view.leases[name])
		}
		for _, name := range slices.Sorted(maps.Keys(view.pods)) {
			fingerprint(&b, view.pods[name])
		}
		b.WriteString("|")
	}
	for _, p := range append(slices.Clone(s.creators), s.reconciler) {
		fmt.Fprintf(&b, "%d %d %t %d %s ", p.phase, p.attempt, p.dead, p.started.Unix(), p.req)
		for _, a := range p.answers {
			fingerprint(&b, a.object)
			fmt.Fprintf(&b, "%s,", apierrors.ReasonForError(a.err))
		}
		b.WriteString("|")
	}
	for _, name := range slices.Sorted(maps.Keys(s.known)) {
		fingerprint(&b, s.known[name])
	}
	fmt.Fprintf(&b, "%d %d %q %v", s.now.Unix(), s.incarnations, s.gone, s.left)
	return sha256.Sum256(b.Bytes())
}

// fingerprint writes what a process may have read from an answer. It panics on an
// unknown type: two states that differ in its content would count as one.
func fingerprint(b *bytes.Buffer, object any) {
	switch object := object.(type) {
	case nil:
	case *coordinationv1.Lease:
		fmt.Fprintf(b, "%s %s %s %s;", object.Name, object.UID, object.ResourceVersion, object.Annotations[annotationHolders])
	case *corev1.Pod:
		fmt.Fprintf(b, "%s %s %q %d;", object.Name, object.UID, object.Labels, object.CreationTimestamp.Unix())
	case []any:
		b.WriteString("[")
		for _, item := range object {
			fingerprint(b, item)
		}
		b.WriteString("]")
	case time.Time:
		fmt.Fprintf(b, "%d;", object.Unix())
	case bool:
		fmt.Fprintf(b, "%t;", object)
	default:
		panic(fmt.Sprintf("the key of a state has no words for %T", object))
	}
}

const envLabel = taskpod.DefaultEnvironmentLabel

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// newPod is the pod of a line of fixture.Pod, with a UID.
func newPod(line string, uid types.UID) *corev1.Pod {
	pod := fixture.Pod("jobs", line)
	pod.UID, pod.CreationTimestamp = uid, metav1.NewTime(epoch)
	return pod
}

// protocol is the code under test: the real one, or one of the broken variants.
type protocol struct {
	server    func(*run) API // as guards use it
	take      func(ctx context.Context, claims *Claimer, n policy.Submission) policy.Decision
	reconcile func(ctx context.Context, r *run, req Request)
	// uid returns the UID of a pod, which a variant may change.
	uid func(pod string, uid types.UID) types.UID
}

var modelSettings = policy.Settings{EnvironmentLabel: envLabel}

func realClaims(api API, r *run) *Claimer {
	fired := make(chan time.Time)
	close(fired)
	return &Claimer{
		API: api, Namespace: "solepod", Settings: modelSettings, Deleted: r.gone,
		after: func(time.Duration) <-chan time.Time { return fired },
	}
}

// caches are what the Reconciler reads.
type caches interface {
	Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error
	podindex.Index
}

func realReconciler(c caches, api API, r *run) *Reconciler {
	return &Reconciler{Cache: c, Pods: c, API: api, Namespace: "solepod", Settings: modelSettings, Deleted: r.gone, Now: r.now}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func realProtocol() protocol {
	return protocol{
		server: func(r *run) API { return server{r} },
		take: func(ctx context.Context, claims *Claimer, n policy.Submission) policy.Decision {
			return must(claims.Take(ctx, n, false))
		},
		reconcile: func(ctx context.Context, r *run, req Request) {
			must(realReconciler(cached{r}, server{r}, r).Reconcile(ctx, req))
		},
		uid: func(_ string, uid types.UID) types.UID { return uid },
	}
}

// explorer walks all states that can be reached.
type explorer struct {
	ctx      context.Context
	scenario scenario
	protocol protocol
	seen     map[[sha256.Size]byte]bool
	ends     int
	broken   func(problem string, path []string) // called for the first problem
	stop     bool
}

func (e *explorer) explore(s *state) {
	key := s.key()
	if e.stop || e.seen[key] {
		return
	}
	e.seen[key] = true
	if problem := e.check(s); problem != "" {
		e.stop = true
		e.broken(problem, s.path)
		return
	}
	moves := 0
	next := func(what string, move func(*state)) {
		if e.stop {
			return
		}
		moves++
		after := s.clone()
		after.path[len(after.path)-1] = what
		move(after)
		e.explore(after)
	}
	for i := range s.creators {
		e.movesOfCreator(s, i, next)
	}
	e.movesOfReconciler(s, next)
	for _, name := range slices.Sorted(maps.Keys(s.pods)) {
		if s.left.deletions > 0 {
			next("delete "+name, func(s *state) { s.left.deletions--; delete(s.pods, name) })
		}
		if s.left.marks > 0 && s.pods[name].Labels[taskpod.LabelChecked] == "" {
			next("mark "+name, func(s *state) { s.left.marks--; s.label(name, taskpod.LabelChecked, taskpod.True) })
		}
		if s.left.unlabellings > 0 && isTask(s.pods[name]) {
			next("take the label off "+name, func(s *state) { s.left.unlabellings--; s.label(name, taskpod.LabelOperator, "") })
		}
	}
	if s.left.expiries > 0 {
		next("wait for GracePeriod", func(s *state) {
			s.left.expiries--
			s.now = s.now.Add(GracePeriod + placeholderRenewal)
			if e.scenario.caches {
				s.known = s.taskPods()
			}
			for i := range s.creators {
				switch p := &s.creators[i]; p.phase {
				case running:
					p.dead = true
				case admitted:
					p.phase = done
				}
			}
		})
	}
	if moves == 0 {
		e.ends++
		if problem := e.settle(s.clone()); problem != "" {
			e.stop = true
			e.broken(problem, s.path)
		}
	}
}

func (e *explorer) submission(i int, p progress) (policy.Submission, *corev1.Pod) {
	c := e.scenario.creators[i]
	pod := newPod(c.pod, c.uids[p.attempt])
	pod.UID = e.protocol.uid(pod.Name, pod.UID)
	return policy.Submission{Pod: taskpod.FromMeta(pod, ""), Now: p.started}, pod
}

func (e *explorer) movesOfCreator(s *state, i int, next func(string, func(*state))) {
	p := s.creators[i]
	n, pod := e.submission(i, p)
	name := fmt.Sprintf("request %d (%s, %s)", i, pod.Name, pod.UID)
	relabels := e.scenario.creators[i].relabels
	// unlabelled reports whether the very pod is there, without the label.
	unlabelled := func(s *state) bool {
		there, ok := s.pods[pod.Name]
		return ok && there.UID == pod.UID && !isTask(there)
	}
	if relabels && p.phase == idle && !unlabelled(s) {
		return // there is nothing to put back
	}
	switch p.phase {
	case idle, running:
		next(name+" asks the guard", func(s *state) {
			p := &s.creators[i]
			if p.phase == idle {
				p.phase, p.started = running, s.now
				n.Now = s.now
				if !s.decideFromCache(n).Allowed {
					p.phase = done
					return
				}
			}
			var decision policy.Decision
			r := &run{state: s, answers: p.answers}
			ended := r.step(func() { decision = e.protocol.take(e.ctx, realClaims(e.protocol.server(r), r), n) })
			p.answers = r.answers
			switch {
			case !ended:
			case decision.Allowed && !p.dead:
				p.phase, p.answers = admitted, nil
			default:
				p.phase, p.answers = done, nil
			}
		})
	case admitted:
		if relabels {
			next(name+" puts the label back", func(s *state) {
				s.creators[i].phase = done
				if unlabelled(s) { // else NotFound, or a conflict
					s.label(pod.Name, taskpod.LabelOperator, taskpod.True)
				}
			})
			return
		}
		next(name+" is created", func(s *state) {
			s.creators[i].phase = done
			if _, exists := s.pods[pod.Name]; !exists { // else AlreadyExists
				pod.CreationTimestamp = metav1.NewTime(s.now)
				s.pods[pod.Name] = pod
			}
		})
		next(name+" is rejected by a quota", func(s *state) { s.creators[i].phase = done })
		if p.attempt+1 < len(e.scenario.creators[i].uids) {
			next(name+" is repeated", func(s *state) {
				s.creators[i].phase = idle
				s.creators[i].attempt++
			})
		}
	}
}

// decideFromCache is what a guard does before it takes a claim.
func (s *state) decideFromCache(n policy.Submission) policy.Decision {
	var existing []policy.Existing
	for name, pod := range s.known {
		if x, ok := s.pods[name]; ok && x.UID == pod.UID {
			existing = append(existing, policy.Existing{Pod: taskpod.FromMeta(x, "")})
		}
	}
	return policy.Decide(n, existing, modelSettings)
}

func (e *explorer) movesOfReconciler(s *state, next func(string, func(*state))) {
	stepped := func(s *state) {
		r := &run{state: s, answers: s.reconciler.answers}
		ended := r.step(func() { e.protocol.reconcile(e.ctx, r, s.reconciler.req) })
		s.reconciler.answers = r.answers
		if ended {
			s.reconciler = progress{}
		}
	}
	if s.reconciler.phase == running {
		next("the Reconciler continues on "+string(s.reconciler.req), stepped)
	} else if s.left.reconciliations > 0 {
		for _, claim := range e.claims() {
			next("the Reconciler starts on "+claim, func(s *state) {
				s.left.reconciliations--
				s.reconciler = progress{phase: running, req: Request(claim)}
				stepped(s)
			})
		}
	}
	if s.left.reconciliations == 0 && s.reconciler.phase == idle {
		return // the cache is not read any more
	}
	if !maps.Equal(s.leases, s.cache.leases) {
		next("the watch of claims catches up", func(s *state) { s.cache.leases = maps.Clone(s.leases) })
	}
	if !maps.Equal(s.taskPods(), s.cache.pods) {
		next("the watch of pods catches up", (*state).watchPods)
	}
}

// taskPods returns the pods that a watch reports: it selects by the label.
func (s *state) taskPods() map[string]*corev1.Pod {
	pods := maps.Clone(s.pods)
	maps.DeleteFunc(pods, func(_ string, pod *corev1.Pod) bool { return !isTask(pod) })
	return pods
}

func (s *state) watchPods() {
	pods := s.taskPods()
	for name, pod := range s.cache.pods {
		if now, ok := pods[name]; !ok || now.UID != pod.UID {
			s.gone = append(s.gone, pod.UID)
		}
	}
	slices.Sort(s.gone)
	s.gone = slices.Compact(s.gone)
	s.cache.pods = pods
}

// claims are the names of all claims of the scenario.
func (e *explorer) claims() []string {
	var names []string
	for _, c := range e.scenario.creators {
		id, _ := taskpod.FromMeta(newPod(c.pod, ""), "").Identity()
		names = append(names, Name(id), Name(id.AnyIndex()))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// label sets a label of a pod, or takes it off if the value is "".
func (s *state) label(name, key, value string) {
	pod := s.pods[name].DeepCopy()
	pod.Labels[key] = value
	if value == "" {
		delete(pod.Labels, key)
	}
	s.pods[name] = pod
}

func isTask(pod *corev1.Pod) bool { return pod.Labels[taskpod.LabelOperator] == taskpod.True }

// check returns what is wrong with a state: a pod whose selector matches
// another's, or that is not a holder of its claim.
func (e *explorer) check(s *state) string {
	for _, object := range s.pods {
		pod := taskpod.FromMeta(object, "")
		if pod.Checked() || !isTask(object) {
			continue
		}
		for _, other := range s.pods {
			if other != object && pod.Selector(envLabel).Matches(labels.Set(other.Labels)) {
				return fmt.Sprintf("looking for %s Airflow finds %s as well", object.Name, other.Name)
			}
		}
		id, _ := pod.Identity()
		if object.UID != "old" && !slices.ContainsFunc(e.holders(s, Name(id)), func(h Holder) bool { return h.UID == object.UID }) {
			return fmt.Sprintf("pod %s, %s is not a holder of its claim", object.Name, object.UID)
		}
	}
	return ""
}

func (e *explorer) holders(s *state, claim string) []Holder {
	lease, ok := s.leases[claim]
	if !ok {
		return nil
	}
	holders, intact := read(lease, s.now)
	if !intact {
		panic(fmt.Sprintf("garbage in claim %s: %v", claim, lease))
	}
	return holders
}

// settle lets time pass and the Reconciler work until nothing changes; then
// the claims are exactly those of the pods that Airflow finds.
func (e *explorer) settle(s *state) string {
	for range 3 {
		s.now = s.now.Add(GracePeriod + placeholderRenewal)
		s.watchPods()
		s.cache.leases = maps.Clone(s.leases)
		for _, claim := range e.claims() {
			var answers []answer
			for ended := false; !ended; {
				r := &run{state: s, answers: answers}
				ended = r.step(func() { e.protocol.reconcile(e.ctx, r, Request(claim)) })
				answers = r.answers
			}
		}
		if problem := e.check(s); problem != "" {
			return "in the end " + problem
		}
	}
	var want, got []string
	for _, object := range s.pods {
		if pod := taskpod.FromMeta(object, ""); !pod.Checked() && isTask(object) {
			id, _ := pod.Identity()
			want = append(want, fmt.Sprint(Name(id), object.UID))
		}
	}
	for claim := range s.leases {
		for _, h := range e.holders(s, claim) {
			got = append(got, fmt.Sprint(claim, h.UID))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		return fmt.Sprintf("in the end the claims are held by %v, and the pods are %v", got, want)
	}
	return ""
}

// start is the state from which a scenario begins.
func start(sc scenario) *state {
	s := &state{
		store: store{map[string]*coordinationv1.Lease{}, map[string]*corev1.Pod{}},
		now:   epoch.Add(time.Hour), creators: make([]progress, len(sc.creators)), left: sc.moves,
	}
	for _, line := range sc.existing {
		pod := newPod(line, "old")
		s.pods[pod.Name] = pod
	}
	s.cache = s.store.clone()
	s.known = s.cache.pods
	return s
}

func explore(t *testing.T, sc scenario, p protocol) (problem string, path []string, states, ends int) {
	t.Helper()
	e := &explorer{ctx: t.Context(), scenario: sc, protocol: p, seen: map[[sha256.Size]byte]bool{}}
	e.broken = func(what string, where []string) { problem, path = what, where }
	e.explore(start(sc))
	return problem, path, len(e.seen), e.ends
}

func scenarios() map[string]scenario {
	one := func(uid types.UID) []types.UID { return []types.UID{uid} }
	return map[string]scenario{
		"two environments": {
			creators: []creator{{pod: "a alpha~", uids: one("1")}, {pod: "b production~", uids: one("2")}},
			moves:    moves{deletions: 1, expiries: 2, reconciliations: 2},
		},
		"two environments, marked as checked": {
			creators: []creator{{pod: "a alpha~", uids: one("1")}, {pod: "b production~", uids: one("2")}},
			moves:    moves{deletions: 1, marks: 1, expiries: 1, reconciliations: 1},
		},
		"a request that the API server repeats": {
			creators: []creator{{pod: "a alpha~", uids: []types.UID{"1", "2"}}, {pod: "b production~", uids: one("3")}},
			moves:    moves{deletions: 1, expiries: 1, reconciliations: 1},
		},
		"the same name again": {
			creators: []creator{{pod: "a alpha~", uids: one("1")}, {pod: "a alpha~", uids: one("2")}, {pod: "b production~", uids: one("3")}},
			moves:    moves{deletions: 1, reconciliations: 1},
		},
		"declared and not": {
			creators: []creator{{pod: "a alpha!", uids: one("1")}, {pod: "b production!", uids: one("2")}, {pod: "c production~", uids: one("3")}},
			moves:    moves{deletions: 1, expiries: 1, reconciliations: 1},
		},
		"mapped and not": {
			creators: []creator{{pod: "a alpha~ map_index=0", uids: one("1")}, {pod: "b production~", uids: one("2")}},
			caches:   true,
			moves:    moves{expiries: 1, reconciliations: 1, deletions: 1},
		},
		"mapped twice and not": {
			creators: []creator{{pod: "a alpha~ map_index=0", uids: one("1")}, {pod: "b alpha~ map_index=1", uids: one("2")}, {pod: "c production~", uids: one("3")}},
			caches:   true,
			moves:    moves{expiries: 1, reconciliations: 1},
		},
		"a name that exists": {
			creators: []creator{{pod: "a production~", uids: one("1")}, {pod: "b alpha~", uids: one("2")}},
			existing: []string{"a alpha~"},
			caches:   true,
			moves:    moves{deletions: 2, reconciliations: 1},
		},
		"the label taken off and put back": {
			creators: []creator{{pod: "a alpha~", uids: one("1")}, {pod: "a alpha~", uids: one("1"), relabels: true}, {pod: "b production~", uids: one("2")}},
			moves:    moves{deletions: 1, unlabellings: 1, expiries: 1, reconciliations: 1},
		},
		"a pod older than solepod": {
			creators: []creator{{pod: "b production~", uids: one("1")}, {pod: "c alpha~", uids: one("2")}},
			existing: []string{"a alpha~"},
			caches:   true,
			moves:    moves{deletions: 1, reconciliations: 2},
		},
	}
}

func TestAllInterleavings(t *testing.T) {
	var total atomic.Int64
	t.Run("scenarios", func(t *testing.T) {
		for name, sc := range scenarios() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				problem, path, states, ends := explore(t, sc, realProtocol())
				if problem != "" {
					t.Fatalf("%s, after\n%s", problem, strings.Join(path, "\n"))
				}
				t.Logf("%d states, %d ends", states, ends)
				total.Add(int64(states))
			})
		}
	})
	text := must(os.ReadFile("../../docs/claims.md"))
	says := fmt.Sprintf("in-memory API server: %d states", total.Load())
	if !t.Failed() && !strings.Contains(strings.ReplaceAll(string(text), ",", ""), says) {
		t.Errorf("docs/claims.md lacks %q", says)
	}
}

// The exploration finds what is wrong with protocols that are nearly right.
// Each of these is a bug that another project has had, or that this one had.
func TestBrokenProtocolsAreFound(t *testing.T) {
	broken := map[string]func(*protocol){
		"claims written without a precondition": func(p *protocol) {
			p.server = func(r *run) API { return unconditional{server{r}} }
		},
		"pods listed before claims": func(p *protocol) {
			p.reconcile = func(ctx context.Context, r *run, req Request) {
				early := &podsFirst{cached: cached{r}, server: server{r}}
				must(realReconciler(early, early, r).Reconcile(ctx, req))
			}
		},
		"pods matched by name": func(p *protocol) {
			p.uid = func(pod string, _ types.UID) types.UID { return types.UID(pod) }
		},
		"no grace for what is in flight": func(p *protocol) {
			p.server = func(r *run) API { return impatient{server{r}} }
		},
		"cached read of the pod at takeover": func(p *protocol) {
			p.server = func(r *run) API { return cachedPods{server{r}} }
		},
		"a pod that lost its label counts as deleted": func(p *protocol) {
			p.server = func(r *run) API { return labelled{server{r}} }
		},
		"a repeated request replaces its holder": func(p *protocol) {
			p.server = func(r *run) API { return replacing{server{r}} }
		},
		"a mapped pod leaves no mark for its family": func(p *protocol) {
			p.take = func(ctx context.Context, claims *Claimer, n policy.Submission) policy.Decision {
				id, _ := n.Pod.Identity()
				return must(claims.take(ctx, id, n, holderOf(n.Pod, envLabel, n.Now), false))
			}
		},
	}
	for name, breakIt := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := realProtocol()
			breakIt(&p)
			for scenario, sc := range scenarios() {
				if problem, path, states, _ := explore(t, sc, p); problem != "" {
					t.Logf("%s: %s, after %d states and\n%s", scenario, problem, states, strings.Join(path, "\n"))
					return
				}
			}
			t.Error("nothing was found")
		})
	}
}

// unconditional writes whatever has been written since.
type unconditional struct{ server }

func (s unconditional) Update(ctx context.Context, in client.Object, opts ...client.UpdateOption) error {
	in.SetResourceVersion("")
	return s.server.Update(ctx, in, opts...)
}

// podsFirst reads pods, live ones too, before the claim that it decides on.
type podsFirst struct {
	cached
	server
	pods []any
}

func (c *podsFirst) Get(ctx context.Context, key client.ObjectKey, out client.Object, opts ...client.GetOption) error {
	if pod, ok := out.(*corev1.Pod); ok {
		for _, x := range c.pods {
			if x := x.(*corev1.Pod); x.Name == key.Name {
				pod.ObjectMeta = x.ObjectMeta
				return nil
			}
		}
		return notFound(key.Name)
	}
	c.pods = must(c.cached.ByIndex("", strings.TrimPrefix(key.Name, prefix)))
	return c.cached.Get(ctx, key, out, opts...)
}

func (c *podsFirst) ByIndex(string, string) ([]any, error) { return c.pods, nil }

// impatient treats every holder as an old one.
type impatient struct{ server }

func (s impatient) Get(ctx context.Context, key client.ObjectKey, out client.Object, opts ...client.GetOption) error {
	err := s.server.Get(ctx, key, out, opts...)
	if lease, ok := out.(*coordinationv1.Lease); ok && err == nil {
		edit(lease, func(holders []Holder) []Holder {
			for i := range holders {
				holders[i].ClaimedAt = metav1.NewTime(epoch)
			}
			return holders
		})
	}
	return err
}

// cachedPods reads pods from a cache.
type cachedPods struct{ server }

func (s cachedPods) Get(ctx context.Context, key client.ObjectKey, out client.Object, opts ...client.GetOption) error {
	if _, ok := out.(*corev1.Pod); ok {
		return cached(s.server).Get(ctx, key, out, opts...)
	}
	return s.server.Get(ctx, key, out, opts...)
}

// labelled has only the pods that a watch reports.
type labelled struct{ server }

func (s labelled) Get(ctx context.Context, key client.ObjectKey, out client.Object, opts ...client.GetOption) error {
	err := s.server.Get(ctx, key, out, opts...)
	if pod, ok := out.(*corev1.Pod); ok && err == nil && !isTask(pod) {
		*pod = corev1.Pod{}
		return notFound(key.Name)
	}
	return err
}

// replacing keeps only the last holder of a name.
type replacing struct{ server }

func (s replacing) Update(ctx context.Context, in client.Object, opts ...client.UpdateOption) error {
	edit(in.(*coordinationv1.Lease), func(holders []Holder) []Holder {
		last := holders[len(holders)-1]
		return slices.DeleteFunc(holders, func(h Holder) bool { return h.Pod == last.Pod && h.UID != last.UID })
	})
	return s.server.Update(ctx, in, opts...)
}

func edit(lease *coordinationv1.Lease, change func([]Holder) []Holder) {
	holders, _ := read(lease, epoch)
	lease.Annotations = map[string]string{annotationHolders: string(must(json.Marshal(change(holders))))}
}
