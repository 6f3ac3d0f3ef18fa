package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/retire"
	"github.com/solepod/solepod/pkg/taskpod"
)

var now = time.Date(2023, 3, 8, 12, 0, 0, 0, time.UTC)

// pod is a live pod of try 1, which is as many minutes old as its name is long,
// after changes to it.
func pod(name string, changes ...func(*Pod)) Pod {
	p := Pod{Pod: taskpod.Pod{
		Namespace: "airflow", Name: name, UID: types.UID(name), Phase: corev1.PodRunning,
		Created: now.Add(-time.Duration(len(name)) * time.Minute),
		Labels:  map[string]string{taskpod.LabelOperator: "True", taskpod.LabelDAG: "d", taskpod.LabelTask: "t", taskpod.LabelRun: "r", taskpod.LabelTry: "1"},
	}}
	for _, change := range changes {
		change(&p)
	}
	return p
}

func label(key, value string) func(*Pod) { return func(p *Pod) { p.Labels[key] = value } }
func labelled(environment string) func(*Pod) {
	return label(taskpod.DefaultEnvironmentLabel, environment)
}

func declares(environment string) func(*Pod) {
	return func(p *Pod) { labelled(environment)(p); label(taskpod.LabelEvidence, taskpod.EvidenceV1)(p) }
}

func stamped(environment string) func(*Pod) {
	return func(p *Pod) { labelled(environment)(p); p.Stamped = true }
}

func endedBefore(ago time.Duration) func(*Pod) {
	return func(p *Pod) { p.Phase, p.Ended = corev1.PodFailed, now.Add(-ago) }
}

func deleting(p *Pod) { p.Deleting, p.Deletion.Due = true, now }

func stuckFor(after time.Duration) func(*Pod) {
	return func(p *Pod) {
		deleting(p)
		p.Deletion = taskpod.Deletion{Due: now.Add(-after), Finalizers: []string{"example.com/keep"}, Node: "n1"}
	}
}

// over has a base container that ended some time ago, next to a sidecar.
func over(ago time.Duration) func(*Pod) {
	return func(p *Pod) {
		p.Over = &taskpod.Over{Container: "base", At: now.Add(-ago), Running: []string{"istio-proxy"}}
		p.Ended = p.Over.At
	}
}

func retired(p *Pod) { p.Retired = true; label(taskpod.LabelChecked, "True")(p) }

func options() Options {
	cfg := config.Default()
	return Options{Settings: cfg.Policy(), OlderThan: time.Hour, Now: now}
}

// found is a report in short.
func found(r Report) []string {
	var out []string
	for _, c := range r.Collisions {
		var names []string
		for _, p := range c.Pods {
			names = append(names, p.Name)
		}
		out = append(out, "collision "+strings.Join(names, " "))
	}
	for _, f := range r.Leftovers {
		out = append(out, fmt.Sprintf("leftover %s %s %t", f.Name, f.Reason, f.Safe))
	}
	for _, f := range r.Orphans {
		out = append(out, fmt.Sprintf("orphan %s %s %t", f.Name, f.Reason, f.Safe))
	}
	return out
}

// With AbandonedAfter, pods that run although nothing can wait for them are removed.
func TestAbandoned(t *testing.T) {
	o := options()
	o.OlderThan = time.Minute
	for after, want := range map[time.Duration]string{
		0:             "a false b false",
		3 * time.Hour: "a false b true",
		time.Hour:     "a true b true",
	} {
		o.AbandonedAfter = after
		r := Scan(Cluster{Environments: map[string]bool{}, Pods: []Pod{
			pod("a", over(2*time.Hour)), pod("b", declares("gone"), func(p *Pod) { p.Created = now.Add(-4 * time.Hour) }, label(taskpod.LabelTask, "other")),
		}}, o)
		var got []string
		for _, f := range slices.Concat(r.Leftovers, r.Orphans) {
			got = append(got, fmt.Sprintf("%s %t", f.Name, f.Safe))
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("after %s: %s, want %s", after, got, want)
		}
	}
}

func TestScan(t *testing.T) {
	const hours = 2 * time.Hour
	for name, test := range map[string]struct {
		pods []Pod
		want []string
	}{
		"one pod":                             {[]Pod{pod("a", stamped("alpha"))}, nil},
		"two of unknown environments":         {[]Pod{pod("a"), pod("bb")}, []string{"collision bb a"}},
		"two environments, stamped":           {[]Pod{pod("a", stamped("alpha")), pod("bb", stamped("production"))}, []string{"collision bb a"}},
		"two environments, declared":          {[]Pod{pod("a", declares("alpha")), pod("bb", declares("production"))}, nil},
		"two environments, labelled":          {[]Pod{pod("a", labelled("alpha")), pod("bb", labelled("production"))}, []string{"collision bb a"}},
		"two environments, one declared":      {[]Pod{pod("a", declares("alpha")), pod("bb", stamped("production"))}, []string{"collision bb a"}},
		"stuck in Terminating":                {[]Pod{pod("a", stuckFor(time.Minute))}, []string{"leftover a StuckTerminating false"}},
		"not stuck yet":                       {[]Pod{pod("a", stuckFor(59*time.Second))}, nil},
		"stuck, but Airflow does not find it": {[]Pod{pod("a", stuckFor(time.Hour), label(taskpod.LabelChecked, "True"))}, nil},
		"the base container has ended":        {[]Pod{pod("a", over(hours))}, []string{"leftover a BaseContainerEnded false"}},
		"it has ended just now":               {[]Pod{pod("a", over(time.Minute))}, nil},
		"it has ended, and is checked":        {[]Pod{pod("a", over(hours), label(taskpod.LabelChecked, "True"))}, nil},
		"one of them is being deleted":        {[]Pod{pod("a"), pod("bb", deleting)}, nil},
		"one of them is checked":              {[]Pod{pod("a"), pod("bb", label(taskpod.LabelChecked, "True"))}, nil},
		"one of them has just ended":          {[]Pod{pod("a"), pod("bb", endedBefore(time.Second))}, []string{"collision bb a"}},
		"both have just ended":                {[]Pod{pod("a", endedBefore(0)), pod("bb", endedBefore(0))}, nil},
		"two map indexes":                     {[]Pod{pod("a", label(taskpod.LabelMapIndex, "0")), pod("bb", label(taskpod.LabelMapIndex, "1"))}, nil},
		"one map index twice":                 {[]Pod{pod("a", label(taskpod.LabelMapIndex, "0")), pod("bb", label(taskpod.LabelMapIndex, "0"))}, []string{"collision bb a"}},
		"mapped beside unmapped":              {[]Pod{pod("a"), pod("bb", label(taskpod.LabelMapIndex, "0")), pod("ccc", label(taskpod.LabelMapIndex, "1"))}, []string{"collision ccc bb a"}},
		"an empty map index":                  {[]Pod{pod("a", label(taskpod.LabelMapIndex, "")), pod("bb"), pod("ccc", label(taskpod.LabelMapIndex, ""))}, []string{"collision ccc bb a"}},
		"of a Job":                            {[]Pod{pod("a"), pod("bb", func(p *Pod) { p.ControllerOwned = true })}, nil},
		"no task pods":                        {[]Pod{pod("a", label(taskpod.LabelOperator, "False")), pod("bb", label(taskpod.LabelOperator, "False"))}, nil},
		"another run":                         {[]Pod{pod("a"), pod("bb", label(taskpod.LabelRun, "x"))}, nil},
		"another namespace":                   {[]Pod{pod("a"), pod("bb", func(p *Pod) { p.Namespace = "x" })}, nil},
		"ended long ago":                      {[]Pod{pod("a", endedBefore(hours))}, []string{"leftover a Leftover true"}},
		"ended long ago, kept on purpose":     {[]Pod{pod("a", endedBefore(hours), label(taskpod.LabelChecked, "True"))}, nil},
		"ended long ago, retired halfway":     {[]Pod{pod("a", endedBefore(hours), retired)}, []string{"leftover a Leftover true"}},
		"live, retired halfway":               {[]Pod{pod("a", retired), pod("bb", retired, label(taskpod.LabelTry, "2"))}, []string{"orphan a SupersededTry false"}},
		"an earlier try is live":              {[]Pod{pod("a", label(taskpod.LabelTry, "2")), pod("bb")}, []string{"collision bb a", "orphan bb SupersededTry false"}},
		"an earlier try has just ended":       {[]Pod{pod("a", label(taskpod.LabelTry, "2")), pod("bb", endedBefore(0))}, []string{"collision bb a", "leftover bb SupersededTry true"}},
		"an earlier try of another one":       {[]Pod{pod("a", label(taskpod.LabelTry, "2"), declares("alpha")), pod("bb", declares("production"))}, nil},
		"tries that are no numbers":           {[]Pod{pod("a", label(taskpod.LabelTry, "x"), declares("alpha")), pod("bb", declares("production"))}, nil},
		"of an unknown environment":           {[]Pod{pod("a", declares("gone"))}, []string{"orphan a UnknownEnvironment false"}},
		"ended, of an environment that went":  {[]Pod{pod("a", declares("gone"), endedBefore(hours))}, []string{"leftover a Leftover true"}},
		"deleting, of an unknown environment": {[]Pod{pod("a", declares("gone"), deleting)}, nil},
		"an older map index beside a younger": {[]Pod{pod("a", label(taskpod.LabelMapIndex, "0"), label(taskpod.LabelTry, "2")), pod("bb", label(taskpod.LabelMapIndex, "1"))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			known := map[string]bool{"alpha": true, "production": true}
			got := found(Scan(Cluster{Pods: test.pods, Environments: known}, options()))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			slices.Reverse(test.pods)
			if again := found(Scan(Cluster{Pods: test.pods, Environments: known}, options())); !slices.Equal(got, again) {
				t.Errorf("in the other order: %q", again)
			}
		})
	}
}

func TestScanFilters(t *testing.T) {
	pods := []Pod{
		pod("a", stamped("alpha")), pod("bb", stamped("production")),
		pod("ccc", endedBefore(2*time.Hour), declares("alpha"), func(p *Pod) { p.Namespace = "x" }),
	}
	for name, test := range map[string]struct {
		namespaces, environments []string
		want                     []string
		pods                     int
	}{
		"all":                    {nil, nil, []string{"collision bb a", "leftover ccc Leftover true"}, 3},
		"a namespace":            {[]string{"x"}, nil, []string{"leftover ccc Leftover true"}, 1},
		"no namespace":           {[]string{"y"}, nil, nil, 0},
		"an environment":         {nil, []string{"production"}, []string{"collision bb a"}, 1},
		"both":                   {[]string{"x"}, []string{"production"}, nil, 0},
		"several":                {[]string{"x", "airflow"}, []string{"alpha", "production"}, []string{"collision bb a", "leftover ccc Leftover true"}, 3},
		"an environment of none": {nil, []string{"gone"}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := options()
			o.Namespaces, o.Environments = test.namespaces, test.environments
			r := Scan(Cluster{Pods: pods}, o)
			if got := found(r); !slices.Equal(got, test.want) || r.Pods != test.pods {
				t.Errorf("%d pods, %q", r.Pods, got)
			}
		})
	}
}

func TestScanEnvironments(t *testing.T) {
	r := Scan(Cluster{Pods: []Pod{
		pod("a", stamped("alpha")), pod("bb", declares("production")), pod("ccc", endedBefore(2*time.Hour), stamped("alpha"), label(taskpod.LabelRun, "x")), pod("dddd"),
	}}, options())
	want := []Environment{
		{Name: "", Live: 1, Collisions: 1},
		{Name: "alpha", Live: 1, Finished: 1, Stamped: 2, Collisions: 1, Leftovers: 1},
		{Name: "production", Live: 1, Declared: 1, Collisions: 1},
	}
	if diff := cmp.Diff(want, r.Environments); diff != "" {
		t.Error(diff)
	}
	for i, undeclared := range []bool{false, true, false} {
		if r.Environments[i].Undeclared() != undeclared {
			t.Errorf("%+v", r.Environments[i])
		}
	}
}

func TestScanClaims(t *testing.T) {
	at := func(ago time.Duration) metav1.Time { return metav1.NewTime(now.Add(-ago)) }
	id, _ := pod("x").Identity()
	old := func(p *Pod) { p.Created = now.Add(-time.Hour) }
	c := Cluster{
		Pods: []Pod{pod("held", old), pod("unheld", old, label(taskpod.LabelRun, "2")), pod("new", label(taskpod.LabelRun, "3"), func(p *Pod) { p.Created = now })},
		Claims: []Claim{
			{Name: "claim-held", Identity: id, Holders: []claim.Holder{{UID: "held", ClaimedAt: at(time.Hour)}}},
			{Name: "claim-gone", Identity: id, Holders: []claim.Holder{{UID: "gone", ClaimedAt: at(time.Hour)}}},
			{Name: "claim-flight", Identity: id, Holders: []claim.Holder{{UID: "flight", Pod: "flight", Environment: "alpha", ClaimedAt: at(time.Second)}}},
			{Name: "claim-mark", Identity: id, Holders: []claim.Holder{{Family: true, ClaimedAt: at(time.Second)}}},
			{Name: "claim-bad", Unreadable: true},
		},
	}
	r := Scan(c, options())
	var without []string
	for _, p := range r.PodsWithoutClaims {
		without = append(without, p.Name)
	}
	got := fmt.Sprint(r.ClaimsWithoutPods, without, r.UnreadableClaims, len(r.InFlight))
	if got != "[claim-gone] [unheld] [claim-bad] 1" {
		t.Error(got)
	}
	if want := (PendingPod{"claim-flight", "airflow", "flight", "alpha", now.Add(-time.Second)}); len(r.InFlight) != 1 || r.InFlight[0] != want {
		t.Errorf("%+v", r.InFlight)
	}
	c.Claims = nil
	if r := Scan(c, options()); len(r.ClaimsWithoutPods)+len(r.PodsWithoutClaims)+len(r.UnreadableClaims) > 0 {
		t.Errorf("without solepod: %+v", r)
	}
}

// A mapped task with very many pods is scanned at once.
func TestScanManyMapped(t *testing.T) {
	const n = 100_000
	pods := make([]Pod, n)
	for i := range pods {
		name := fmt.Sprint(i)
		pods[i] = pod(name, label(taskpod.LabelMapIndex, name))
	}
	if r := Scan(Cluster{Pods: pods}, options()); r.Pods != n || len(found(r)) > 0 {
		t.Errorf("%d pods, %d findings", r.Pods, len(found(r)))
	}
}

func object(name string, phase corev1.PodPhase) *corev1.Pod {
	labels := pod(name).Labels
	labels["a-label-that-is-not-read"] = "x"
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "airflow", Name: name, UID: types.UID(name), Labels: labels},
		Status:     corev1.PodStatus{Phase: phase},
	}
}

// What is kept is what the types that are read say.
func TestCollect(t *testing.T) {
	finished := object("finished", corev1.PodSucceeded)
	finished.Annotations = map[string]string{retire.Annotation: "x"}
	end := metav1.NewTime(now.Add(-time.Minute))
	finished.Status.ContainerStatuses = []corev1.ContainerStatus{
		{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now.Add(-time.Hour))}}},
		{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: end}}},
	}
	evicted := object("evicted", corev1.PodFailed)
	evicted.Status.Conditions = []corev1.PodCondition{{LastTransitionTime: end}}
	other := object("other", corev1.PodRunning)
	other.Labels[taskpod.LabelOperator] = "False"
	c := fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(
		object("live", corev1.PodRunning), finished, evicted, other,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"airflow-environment": "by-namespace"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "x", Labels: map[string]string{"airflow-environment": "by-account"}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "solepod-system", Name: "claim-x", Labels: map[string]string{claim.Label: "v1"}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "solepod-system", Name: "solepod"}},
	).Build()
	cfg := config.Default()
	cfg.Environments = []config.Environment{{Name: "by-configuration"}}
	cluster, err := Source{Client: c, Namespace: "solepod-system", Configuration: cfg}.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range cluster.Pods {
		got[p.Name] = fmt.Sprintf("%s %t %s %d", p.Phase, p.Retired, p.Ended.UTC().Format(time.TimeOnly), len(p.Labels))
	}
	if diff := cmp.Diff(map[string]string{
		"live": "Running false 00:00:00 5", "finished": "Succeeded true 11:59:00 5", "evicted": "Failed false 11:59:00 5",
	}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]bool{"by-namespace": true, "by-account": true, "by-configuration": true}, cluster.Environments); diff != "" {
		t.Error(diff)
	}
	if len(cluster.Claims) != 1 || !cluster.Claims[0].Unreadable {
		t.Errorf("%+v", cluster.Claims)
	}
}

// pages is an API server with n pods, which it makes up page by page.
type pages struct {
	client.Reader

	n, longest int
}

func (s *pages) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	pods, ok := list.(*corev1.PodList)
	if !ok {
		return s.Reader.List(ctx, list, options...)
	}
	var o client.ListOptions
	o.ApplyOptions(options)
	first := 0
	if o.Continue != "" {
		if _, err := fmt.Sscan(o.Continue, &first); err != nil {
			return err
		}
	}
	last := min(first+int(o.Limit), s.n)
	for i := first; i < last; i++ {
		p := object(fmt.Sprintf("pod-%d", i), corev1.PodFailed)
		// No two pods share memory when they come from an API server.
		for key, value := range p.Labels {
			p.Labels[key] = strings.Clone(value)
		}
		p.Spec.Containers = []corev1.Container{{Name: "base", Command: []string{strings.Repeat("x", 2000)}}}
		pods.Items = append(pods.Items, *p)
	}
	if last < s.n {
		pods.Continue = fmt.Sprint(last)
	}
	s.longest = max(s.longest, len(pods.Items))
	return nil
}

// Of each pod little is kept, however large it is.
func TestCollectMany(t *testing.T) {
	c := &pages{Reader: fake.NewClientBuilder().WithScheme(scheme.Scheme).Build(), n: 50_000}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	cluster, err := Source{Client: c, Configuration: config.Default()}.Collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kept := (heap() - before) / uint64(len(cluster.Pods))
	t.Logf("%d bytes of each pod are kept", kept)
	if len(cluster.Pods) != c.n || c.longest > 500 || kept > 1000 {
		t.Errorf("%d pods, in pages of up to %d, of each of which %d bytes are kept", len(cluster.Pods), c.longest, kept)
	}
	runtime.KeepAlive(cluster)
}

// Each pod is marked before it is deleted, and only as it was scanned.
func TestReclaim(t *testing.T) {
	var calls []string
	refuse := map[string]error{}
	pods := schema.GroupResource{Resource: "pods"}
	c := fake.NewClientBuilder().WithObjects(object("good", corev1.PodFailed), object("changed", corev1.PodFailed), object("refused", corev1.PodFailed)).
		WithInterceptorFuncs(interceptor.Funcs{
			Patch: func(_ context.Context, _ client.WithWatch, o client.Object, patch client.Patch, _ ...client.PatchOption) error {
				data, err := patch.Data(o)
				calls = append(calls, "mark "+o.GetName()+" "+string(data))
				return errors.Join(err, refuse[o.GetName()])
			},
			Delete: func(_ context.Context, _ client.WithWatch, o client.Object, options ...client.DeleteOption) error {
				var applied client.DeleteOptions
				applied.ApplyOptions(options)
				calls = append(calls, "delete "+o.GetName()+" "+string(*applied.Preconditions.UID))
				return nil
			},
		}).Build()
	refuse["changed"] = apierrors.NewConflict(pods, "changed", errors.New("it has"))
	refuse["refused"] = apierrors.NewForbidden(pods, "refused", errors.New("so it is"))
	version := func(p *Pod) { p.ResourceVersion = "7" }
	report := Scan(Cluster{Pods: []Pod{
		pod("good", endedBefore(2*time.Hour), version), pod("changed", endedBefore(2*time.Hour), version, label(taskpod.LabelRun, "2")),
		pod("refused", endedBefore(2*time.Hour), version, label(taskpod.LabelRun, "3")), pod("live", version, label(taskpod.LabelRun, "4")),
	}}, options())
	results, err := Reclaimer{Client: c, Limiter: flowcontrol.NewFakeAlwaysRateLimiter()}.Reclaim(t.Context(), report.Reclaimable())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Outcome{}
	for _, r := range results.Pods {
		got[r.Name] = r.Outcome
	}
	if diff := cmp.Diff(map[string]Outcome{"good": outcomeReclaimed, "changed": outcomeChanged, "refused": outcomeFailed}, got); diff != "" {
		t.Error(diff)
	}
	slices.Sort(calls)
	const mark = `{"metadata":{"annotations":{"solepod.io/retired":"reclaimed: Leftover"},"labels":{"already_checked":"True"},"resourceVersion":"7","uid":"%s"}}`
	if diff := cmp.Diff([]string{
		"delete good good",
		"mark changed " + fmt.Sprintf(mark, "changed"), "mark good " + fmt.Sprintf(mark, "good"), "mark refused " + fmt.Sprintf(mark, "refused"),
	}, calls); diff != "" {
		t.Error(diff)
	}

	calls = nil
	if results, err := (Reclaimer{}).Reclaim(t.Context(), report.Reclaimable()); err != nil || len(results.Pods) != 3 || results.Pods[0].Outcome != outcomePlanned || calls != nil {
		t.Errorf("a dry run: %+v %v %q", results, err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	interrupted := Reclaimer{Client: c, Limiter: flowcontrol.NewTokenBucketRateLimiter(1e6, 1), Done: func(Result) { cancel() }}
	if results, err := interrupted.Reclaim(ctx, report.Reclaimable()); !errors.Is(err, context.Canceled) || len(results.Pods) == 3 {
		t.Errorf("interrupted: %d results, %v", len(results.Pods), err)
	}
}

func TestNamed(t *testing.T) {
	c := Cluster{Pods: []Pod{pod("a"), pod("bb", label(taskpod.LabelOperator, "False"))}}
	name := func(s string) types.NamespacedName { return types.NamespacedName{Namespace: "airflow", Name: s} }
	if got, err := c.Named([]types.NamespacedName{name("a")}, options()); err != nil || len(got) != 1 || got[0].Reason != reasonNamed {
		t.Errorf("%+v %v", got, err)
	}
	_, err := c.Named([]types.NamespacedName{name("a"), name("bb"), name("c")}, options())
	if err == nil || !strings.Contains(err.Error(), "airflow/bb") || !strings.Contains(err.Error(), "airflow/c") {
		t.Error(err)
	}
}

// Table has what is found on one screen, Wide has all of it.
func TestTable(t *testing.T) {
	pods := []Pod{pod("a", stamped("alpha")), pod("bb", stamped("production"))}
	for i := range 30 {
		pods = append(pods, pod(fmt.Sprintf("left-%02d", i), endedBefore(2*time.Hour), stamped("alpha"), label(taskpod.LabelRun, fmt.Sprint(i))))
	}
	r := Scan(Cluster{Pods: pods, Claims: []Claim{{Name: "claim-bad", Unreadable: true}}}, options())
	var table, wide, clean bytes.Buffer
	nothing := Scan(Cluster{}, options())
	if err := errors.Join(Table(&table, r), Wide(&wide, r), Table(&clean, nothing)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"32 task pods, 1 collision, 30 leftovers", "COLLISION of task t of DAG d, run r, in namespace airflow", "3.0.0 to 8.3.0", "and 20 more leftovers", "claim-bad", "No pod of alpha, production declares"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	if strings.Contains(table.String(), "left-29") || !strings.Contains(wide.String(), "left-29") || !strings.Contains(clean.String(), "No problems found") {
		t.Error(table.String(), wide.String(), clean.String())
	}
	for _, line := range strings.Split(table.String(), "\n") {
		if strings.TrimRight(line, " ") != line {
			t.Errorf("spaces at the end of %q", line)
		}
	}
}
