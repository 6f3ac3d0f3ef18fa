package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/solepod"
)

// path is a kind of request.
type path struct {
	name     string
	variants []variant
	// declared pods carry their environment; denied ones are another's.
	declared, denied, dryRun bool
	// once: it is measured with one client, on a quiet cluster; empty: and only
	// with the first number of pods.
	once, empty bool
}

func paths() []path {
	return []path{
		{name: "create", variants: []variant{none, noop, floor, withSolepod, naive}},
		{name: "declared", variants: []variant{noop, floor, withSolepod}, declared: true, once: true},
		{name: "denied", variants: []variant{noop, withSolepod, naive}, denied: true, once: true},
		{name: "dry run", variants: []variant{noop, withSolepod}, dryRun: true, once: true},
		{name: "other floors", variants: []variant{floor, floorJSON, floorDial, floorFull, floorStamp, withSolepod}, once: true, empty: true},
	}
}

// load is a row of the table.
type load struct {
	path    path
	size    int  // pods that are there
	clients int  // at once
	busy    bool // other things are written meanwhile
}

func (l load) String() string {
	quiet := "quiet"
	if l.busy {
		quiet = "busy"
	}
	return fmt.Sprintf("%s, %d pods, %d clients, %s", l.path.name, l.size, l.clients, quiet)
}

// samples are the latencies of a variant, in seconds, by turn.
type samples [][]float64

type row struct {
	load    load
	Load    string              `json:"load"`
	Samples map[variant]samples `json:"-"`
	Results map[variant]result  `json:"results"`
	// took is how long a variant's turns lasted, all together.
	took map[variant]time.Duration
}

type bench struct {
	o        options
	plane    *controlplane.ControlPlane
	solepod  *solepod.Process
	airflows map[string]client.Client
	sequence atomic.Int64
	filled   int
}

const (
	namespace = "bench-jobs"
	// unrelated is how many other writes a second a busy cluster has.
	unrelated = 50
)

func newBench(ctx context.Context, plane *controlplane.ControlPlane, o options, progress io.Writer) (_ *bench, err error) {
	b := &bench{o: o, plane: plane}
	if b.airflows, err = plane.Airflows(ctx, namespace); err != nil {
		return nil, err
	}
	fmt.Fprintln(progress, "starting solepod")
	if b.solepod, err = solepod.Start(ctx, plane, solepod.Options{Direct: true}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	if err := b.solepod.Install(ctx); err != nil {
		return nil, err
	}
	if err := only(ctx, plane.Admin); err != nil {
		return nil, err
	}
	others, err := startOthers(ctx, plane)
	if err != nil {
		return nil, err
	}
	if err := others.install(); err != nil {
		return nil, err
	}
	// Until all are called: a create of each variant succeeds, and solepod's is
	// stamped.
	return b, wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		for _, v := range append(served(), withSolepod) {
			pod := b.pod(path{}, v)
			if err := b.airflows["alpha"].Create(ctx, pod, client.DryRunAll); err != nil {
				return false, nil //nolint:nilerr // not yet
			}
			if _, stamped := pod.Labels["airflow-environment"]; stamped != (v == withSolepod || v == floorStamp) {
				return false, nil
			}
		}
		return true, nil
	})
}

func newClient(config *rest.Config) (client.Client, error) {
	config.QPS = -1
	return client.New(config, client.Options{})
}

func (b *bench) stop() error {
	return errors.Join(b.solepod.Uninstall(context.Background()), b.solepod.Stop())
}

// only restricts solepod's hooks to the pods of its variant.
func only(ctx context.Context, c client.Client) error {
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	key := client.ObjectKey{Name: "solepod"}
	if err := errors.Join(c.Get(ctx, key, &mutating), c.Get(ctx, key, &validating)); err != nil {
		return err
	}
	want := metav1.LabelSelectorRequirement{Key: label, Operator: metav1.LabelSelectorOpIn, Values: []string{string(withSolepod)}}
	for i := range mutating.Webhooks {
		mutating.Webhooks[i].ObjectSelector.MatchExpressions = append(mutating.Webhooks[i].ObjectSelector.MatchExpressions, want)
	}
	for i := range validating.Webhooks {
		s := &validating.Webhooks[i].ObjectSelector
		if *s == nil {
			*s = &metav1.LabelSelector{}
		}
		(*s).MatchExpressions = append((*s).MatchExpressions, want)
	}
	return errors.Join(c.Update(ctx, &mutating), c.Update(ctx, &validating))
}

// pod is a new task's, as Airflow sends it.
func (b *bench) pod(p path, v variant) *corev1.Pod {
	n := strconv.FormatInt(b.sequence.Add(1), 10)
	operator := "True"
	if slices.Contains(append(served(), none), v) {
		operator = "No" // otherwise solepod would adopt the pod meanwhile
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "task-" + n, Labels: map[string]string{
			"kubernetes_pod_operator": operator, "dag_id": "bench", "task_id": "task-" + n, "run_id": "scheduled__2023-03-08T0130000000-77fa57adf", "try_number": "1",
			label: string(v),
		}},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "base", Image: "job"}}},
	}
	if p.declared {
		pod.Labels["airflow-environment"], pod.Labels["solepod.io/declared"] = "alpha", "v1"
	}
	if p.denied && v != noop {
		pod.Labels["task_id"] = rival(v)
	}
	return pod
}

func rival(v variant) string { return "rival-of-" + string(v) }

// fill creates that many pods in the caches of solepod: one through the API server,
// with the claim by which solepod adopts it, and copies of both in etcd.
func (b *bench) fill(ctx context.Context, size int) error {
	if b.filled >= size {
		return nil
	}
	pod := b.pod(path{declared: true}, "fill")
	if err := b.plane.Admin.Create(ctx, pod); err != nil {
		return err
	}
	b.filled++
	if err := b.settled(ctx); err != nil {
		return err
	}
	id, _ := taskpod.FromMeta(pod, "").Identity()
	var lease coordinationv1.Lease
	if err := b.plane.Admin.Get(ctx, client.ObjectKey{Namespace: solepod.Namespace, Name: claim.Name(id)}, &lease); err != nil {
		return err
	}
	missing := int64(size - b.filled)
	err := clients(32, func(int) error {
		for atomic.AddInt64(&missing, -1) >= 0 {
			if err := b.plane.Store(ctx, b.copies(pod, &lease)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.filled = size
	return b.settled(ctx)
}

// clients work at the same time.
func clients(n int, work func(i int) error) error {
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() { errs[i] = work(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// copies are a pod of another task, and its claim.
func (b *bench) copies(pod *corev1.Pod, lease *coordinationv1.Lease) []client.Object {
	like, uid := b.pod(path{}, ""), uuid.NewUUID()
	replacer := strings.NewReplacer(pod.Name, like.Name, string(pod.UID), string(uid))
	pod, lease = pod.DeepCopy(), lease.DeepCopy()
	pod.UID, pod.Name = uid, like.Name
	for _, labels := range []map[string]string{pod.Labels, lease.Labels} {
		labels[taskpod.LabelTask] = like.Labels[taskpod.LabelTask]
	}
	id, _ := taskpod.FromMeta(pod, "").Identity()
	lease.UID, lease.Name = uuid.NewUUID(), claim.Name(id)
	for key, value := range lease.Annotations {
		lease.Annotations[key] = replacer.Replace(value)
	}
	*lease.Spec.HolderIdentity = replacer.Replace(*lease.Spec.HolderIdentity)
	return []client.Object{pod, lease}
}

// settled waits until there are as many claims as pods that were filled in.
func (b *bench) settled(ctx context.Context) error {
	got := 0
	err := wait.PollUntilContextTimeout(ctx, time.Second, 10*time.Minute, true, func(ctx context.Context) (bool, error) {
		claims, err := b.metric(ctx, "solepod_claims")
		if err != nil {
			return false, err
		}
		got = int(claims)
		return got == b.filled, nil
	})
	if err != nil {
		return fmt.Errorf("there are %d claims for %d pods: %w", got, b.filled, err)
	}
	return nil
}

// row measures: turn by turn, each variant in a random order, and then takes
// away what was created.
func (b *bench) row(ctx context.Context, l load) (row, error) {
	r := row{load: l, Load: l.String(), Samples: map[variant]samples{}, took: map[variant]time.Duration{}}
	if l.path.denied {
		for _, v := range l.path.variants {
			pod := b.pod(l.path, v)
			if err := b.airflows["alpha"].Create(ctx, pod); err != nil {
				return r, err
			}
		}
	}
	if l.busy {
		busy, stop := context.WithCancel(ctx)
		defer stop()
		go b.write(busy)
	}
	rounds := b.o.rounds
	if l.clients > 1 || l.busy {
		rounds = (rounds + 3) / 4 // those of several clients are longer, see turn
	}
	for turn := -1; turn < rounds; turn++ { // the first one warms up
		for _, i := range rand.Perm(len(l.path.variants)) { //nolint:gosec // an order, not a secret
			v := l.path.variants[i]
			began := time.Now()
			seconds, err := b.turn(ctx, l, v)
			if err != nil {
				return r, fmt.Errorf("%s: %w", v, err)
			}
			if turn >= 0 {
				r.Samples[v] = append(r.Samples[v], seconds)
				r.took[v] += time.Since(began)
			}
		}
	}
	r.evaluate()
	return r, b.clean(ctx, l)
}

// turn is a variant's: clients create pods, each one after another. It ends when
// all are answered, and is longer with several clients, who wait for one another.
func (b *bench) turn(ctx context.Context, l load, v variant) ([]float64, error) {
	took := make([][]float64, l.clients)
	slice := b.o.slice
	if l.clients > 1 {
		slice *= 2
	}
	end := time.Now().Add(slice)
	err := clients(l.clients, func(i int) error {
		for time.Now().Before(end) {
			seconds, err := b.create(ctx, l, v)
			if err != nil {
				return err
			}
			took[i] = append(took[i], seconds)
		}
		return nil
	})
	return slices.Concat(took...), err
}

// create creates a pod, and fails if it is not decided on as it should be.
func (b *bench) create(ctx context.Context, l load, v variant) (seconds float64, err error) {
	pod := b.pod(l.path, v)
	airflow := b.airflows["alpha"]
	var options []client.CreateOption
	if l.path.denied {
		airflow = b.airflows["production"]
	}
	if l.path.dryRun {
		options = append(options, client.DryRunAll)
	}
	began := time.Now()
	err = airflow.Create(ctx, pod, options...)
	seconds = time.Since(began).Seconds()
	if !l.path.denied || v == noop {
		return seconds, err
	}
	if !apierrors.IsForbidden(err) {
		return seconds, fmt.Errorf("it was not denied: %w", err)
	}
	return seconds, nil
}

// write is what else happens in a cluster.
func (b *bench) write(ctx context.Context) {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "unrelated"}}
	_ = b.plane.Admin.Create(ctx, m) // it is there from the second time on
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		m.Data = map[string]string{"now": time.Now().String()}
		m.ResourceVersion = ""
		_ = b.plane.Admin.Update(ctx, m) // also when it is stopped
	}, time.Second/unrelated)
}

// clean deletes what was created, that of each variant at the same time.
func (b *bench) clean(ctx context.Context, l load) error {
	variants := l.path.variants
	err := clients(len(variants), func(i int) error {
		return b.plane.Admin.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(namespace), client.MatchingLabels{label: string(variants[i])}, client.GracePeriodSeconds(0))
	})
	if err != nil {
		return err
	}
	if err := b.plane.Admin.DeleteAllOf(ctx, &coordinationv1.Lease{}, client.InNamespace(solepod.Namespace), client.HasLabels{label}); err != nil {
		return err
	}
	return b.settled(ctx)
}

// calls are what one create of a path costs: the API server, by its own count,
// and solepod.
type calls struct {
	Path string `json:"path"`
	// Stamp and Guard are calls of the hooks, Creates those of Leases, Reads all
	// GETs and Lists all LISTs of pods and Leases.
	Stamp   float64 `json:"stamp"`
	Guard   float64 `json:"guard"`
	Creates float64 `json:"creates"`
	Reads   float64 `json:"reads"`
	Lists   float64 `json:"lists"`
	// CPU is what solepod's process takes for it, in seconds: the hooks, and the
	// leader's work on the claim until that is deleted.
	CPU float64 `json:"cpu"`
}

// count has eight clients create pods of a path, and counts.
func (b *bench) count(ctx context.Context, p path) (calls, error) {
	const creates = 240
	if p.denied {
		if err := b.airflows["alpha"].Create(ctx, b.pod(p, withSolepod)); err != nil {
			return calls{}, err
		}
	}
	read := func() (counts [5]int, err error) {
		counted := func(i int, counter string, labels map[string]string) {
			n, countErr := b.plane.Counted(ctx, counter, labels)
			counts[i] += n
			err = errors.Join(err, countErr)
		}
		for i, hook := range []string{"stamp", "guard"} {
			counted(i, "apiserver_admission_webhook_admission_duration_seconds", map[string]string{"name": hook + ".solepod.io"})
		}
		requests := func(i int, verb, resource string) {
			counted(i, "apiserver_request_total", map[string]string{"verb": verb, "resource": resource})
		}
		requests(2, "POST", "leases")
		for _, resource := range []string{"pods", "leases"} {
			requests(3, "GET", resource)
			requests(4, "LIST", resource)
		}
		return counts, err
	}
	before, err := read()
	if err != nil {
		return calls{}, err
	}
	cpu, err := b.metric(ctx, "process_cpu_seconds_total")
	if err != nil {
		return calls{}, err
	}
	err = clients(8, func(int) error {
		for range creates / 8 {
			if _, err := b.create(ctx, load{path: p}, withSolepod); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return calls{}, err
	}
	after, err := read()
	each := func(i int) float64 { return float64(after[i]-before[i]) / creates }
	c := calls{Path: p.name, Stamp: each(0), Guard: each(1), Creates: each(2), Reads: each(3), Lists: each(4)}
	if err := errors.Join(err, b.clean(ctx, load{path: p})); err != nil {
		return c, err
	}
	now, err := b.metric(ctx, "process_cpu_seconds_total") // all claims are gone
	c.CPU = (now - cpu) / creates
	return c, err
}

// metric is the sum of what solepod's process has under a name.
func (b *bench) metric(ctx context.Context, name string) (float64, error) {
	metrics, err := b.solepod.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	return controlplane.Sum(metrics, name, nil)
}

// memory is what solepod takes, leader and all, when there are that many pods.
type memory struct {
	Pods int `json:"pods"`
	// Resident is in bytes, once all pods are adopted, and Restarted the same
	// after a restart.
	Resident  int64 `json:"resident"`
	Restarted int64 `json:"restarted"`
	// Ready is how many seconds pass from the start of the process until it is
	// ready.
	Ready float64 `json:"ready"`
}

func (b *bench) memory(ctx context.Context, progress io.Writer) (m memory, err error) {
	m.Pods = b.filled
	const resident = "process_resident_memory_bytes"
	bytes, err := b.metric(ctx, resident)
	if err != nil {
		return m, err
	}
	m.Resident = int64(bytes)
	if err := b.solepod.Replica.Stop(); err != nil {
		return m, err
	}
	began := time.Now()
	if err := errors.Join(b.solepod.Start(), b.solepod.WaitReady(ctx)); err != nil {
		return m, err
	}
	m.Ready = time.Since(began).Seconds()
	if err := b.settled(ctx); err != nil {
		return m, err
	}
	if bytes, err = b.metric(ctx, resident); err != nil {
		return m, err
	}
	m.Restarted = int64(bytes)
	fmt.Fprintf(progress, "with %d pods solepod takes %d MiB, %d MiB after a restart, of %.1f s\n", m.Pods, m.Resident>>20, m.Restarted>>20, m.Ready)
	return m, nil
}
