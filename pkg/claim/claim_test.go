package claim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// The API server is a fake here: these tests are about one call of Take or
// Reconcile, and about an API server that fails.

var now = epoch.Add(time.Hour)

func cluster(objects ...client.Object) client.WithWatch {
	// The fake goes through its scheme at each write; the whole of it takes milliseconds.
	small := runtime.NewScheme()
	small.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{})
	small.AddKnownTypes(coordinationv1.SchemeGroupVersion, &coordinationv1.Lease{}, &coordinationv1.LeaseList{})
	return fake.NewClientBuilder().WithScheme(small).WithObjects(objects...).WithTypeConverters(managedfields.NewDeducedTypeConverter()).Build()
}

// known is what an informer on the pods of a cluster would know.
type known struct{ client.Reader }

func (k known) ByIndex(index, key string) ([]any, error) {
	var list corev1.PodList
	if err := k.List(context.Background(), &list); err != nil {
		return nil, err
	}
	informed := toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, podindex.Indexers())
	for i := range list.Items {
		if err := informed.Add(&list.Items[i]); err != nil {
			return nil, err
		}
	}
	return informed.ByIndex(index, key)
}

// submission is the creation of a pod with UID n1.
func submission(line string) policy.Submission {
	return policy.Submission{Pod: taskpod.FromMeta(newPod(line, "n1"), ""), Now: now}
}

func claimsOn(api API) *Claimer {
	return &Claimer{API: api, Namespace: "solepod", Settings: modelSettings, Deleted: nobody}
}

func nobody(types.UID) bool { return false }

// leaseOf is the claim of a pod's identity.
func leaseOf(t *testing.T, c client.Reader, line string) *coordinationv1.Lease {
	t.Helper()
	id, _ := taskpod.FromMeta(newPod(line, ""), "").Identity()
	lease := &coordinationv1.Lease{}
	err := c.Get(t.Context(), client.ObjectKey{Namespace: "solepod", Name: Name(id)}, lease)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

// holdersOf returns the content of a claim, one word a holder.
func holdersOf(t *testing.T, c client.Reader, line string) string {
	t.Helper()
	lease := leaseOf(t, c, line)
	if lease == nil {
		return "none"
	}
	holders, ok := read(lease, now)
	var words []string
	if !ok {
		words = append(words, "garbage")
	}
	for _, h := range holders {
		name := h.Pod
		if h.Family {
			name = "mark"
		}
		words = append(words, fmt.Sprintf("%s/%s@%s", name, h.UID, now.Sub(h.ClaimedAt.Time)))
	}
	return strings.Join(words, " ")
}

func TestNames(t *testing.T) {
	lines := []string{
		"x", "x run_id=", "x task_id=t/d", "x dag_id=a task_id=b-c", "x dag_id=a-b task_id=c",
		"x map_index=", "x map_index=0", "x map_index=false", "x execution_date=r run_id=r2",
	}
	seen := map[string]string{}
	for _, line := range lines {
		id, _ := taskpod.FromMeta(newPod(line, ""), "").Identity()
		name := Name(id)
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q have the same claim", line, other)
		}
		seen[name] = line
		if problems := validation.NameIsDNSSubdomain(name, false); len(problems) > 0 {
			t.Errorf("%s: %v", name, problems)
		}
	}
	other, _ := taskpod.FromMeta(newPod("x dag_id=d task_id=t run_id=r airflow-environment=alpha try_number=2", ""), "").Identity()
	if Name(other) != Name(taskpod.Identity{Namespace: "jobs", DAG: "d", Task: "t", RunLabel: "run_id", Run: "r"}) {
		t.Error("environment or try are part of the name")
	}
}

// What is written is a valid object, and reads as what was written.
func TestWriteAndRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringMatching(`([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?`)
		pod := newPod("x", "uid")
		for _, key := range []string{taskpod.LabelDAG, taskpod.LabelTask, taskpod.LabelRun, taskpod.LabelTry, envLabel} {
			pod.Labels[key] = value.Draw(t, key)
		}
		if rapid.Bool().Draw(t, "mapped") {
			pod.Labels[taskpod.LabelMapIndex] = value.Draw(t, "index")
		}
		p := taskpod.FromMeta(pod, "")
		id, _ := p.Identity()
		var want []Holder
		for range rapid.IntRange(1, maxHolders).Draw(t, "holders") {
			want = append(want, holderOf(p, envLabel, now))
		}
		var lease coordinationv1.Lease
		lease.Name = Name(id)
		if err := write(&lease, id, want, envLabel, rapid.Bool().Draw(t, "discreet")); err != nil {
			t.Fatal(err)
		}
		if errs := metav1validation.ValidateLabels(lease.Labels, nil); len(errs) > 0 {
			t.Error(errs)
		}
		if errs := validation.ValidateAnnotations(lease.Annotations, nil); len(errs) > 0 {
			t.Error(errs)
		}
		got, ok := read(&lease, now)
		if diff := cmp.Diff(want, got); diff != "" || !ok {
			t.Errorf("intact %v, %s", ok, diff)
		}
		if of, ok := identityOf(&lease); !ok || of != id {
			t.Errorf("identity %v, want %v", of, id)
		}
	})
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		holders        []Holder
		full, discreet string
	}{
		{[]Holder{{Pod: "a", Environment: "alpha"}}, "a (alpha)", "a pod (alpha)"},
		{[]Holder{{Pod: "a"}, {Family: true, Environment: "beta"}}, "a (unknown), 1 more", "a pod (unknown), 1 more"},
		{[]Holder{{Family: true, Environment: "beta"}}, "mapped pods (beta)", "mapped pods (beta)"},
		{[]Holder{{}, {Pod: "b"}, {}}, "unknown (unknown), 2 more", "a pod (unknown), 2 more"},
	} {
		if got := describe(c.holders, false); got != c.full {
			t.Errorf("%q, want %q", got, c.full)
		}
		if got := describe(c.holders, true); got != c.discreet {
			t.Errorf("discreet: %q, want %q", got, c.discreet)
		}
	}
}

// A discreet claim shows no names in its labels or its spec, and has the same identity.
func TestDiscreet(t *testing.T) {
	pod := newPod("a-pod dag_id=a-dag task_id=a-task run_id=a-run map_index=3", "u")
	id, _ := taskpod.FromMeta(pod, "").Identity()
	claim := &coordinationv1.Lease{}
	claim.Name = Name(id)
	if err := write(claim, id, []Holder{held("a-pod dag_id=a-dag", "u", 0)}, envLabel, true); err != nil {
		t.Fatal(err)
	}
	shown, err := json.Marshal([]any{claim.Labels, claim.Spec})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a-dag", "a-task", "a-run", "a-pod"} {
		if strings.Contains(string(shown), name) {
			t.Errorf("%s is in %s", name, shown)
		}
	}
	if of, _, ok := Inspect(claim); of != id || !ok {
		t.Errorf("%v, want %v", of, id)
	}
	claim.Annotations["solepod.io/task"] = "{"
	if of, _, ok := Inspect(claim); of != (taskpod.Identity{}) || !ok {
		t.Errorf("edited: %v, %v", of, ok)
	}
}

// lease is a claim of the task of newPod's lines, with holders.
func lease(line string, holders ...Holder) *coordinationv1.Lease {
	id, _ := taskpod.FromMeta(newPod(line, ""), "").Identity()
	out := &coordinationv1.Lease{}
	out.Namespace, out.Name = "solepod", Name(id)
	if err := write(out, id, holders, envLabel, false); err != nil {
		panic(err)
	}
	return out
}

// held is a holder for a pod's line, some time ago.
func held(line string, uid types.UID, ago time.Duration) Holder {
	return holderOf(taskpod.FromMeta(newPod(line, uid), ""), envLabel, now.Add(-ago))
}

func checked(pod *corev1.Pod) *corev1.Pod {
	pod.Labels[taskpod.LabelChecked] = taskpod.True
	return pod
}

func ended(pod *corev1.Pod) *corev1.Pod {
	pod.Status.Phase = corev1.PodSucceeded
	return pod
}

func marked(h Holder) Holder { return placeholderOf(h) }

func TestTake(t *testing.T) {
	const long = GracePeriod + placeholderRenewal
	garbage := func(change func(*coordinationv1.Lease)) *coordinationv1.Lease {
		l := lease("n", held("x alpha~", "x1", long))
		change(l)
		return l
	}
	tests := map[string]struct {
		objects []client.Object
		line    string // the submission, of UID n1
		want    string // reason, or "admit", and the holders after it
	}{
		"no claim":                     {nil, "n alpha~", "admit: n/n1@0s"},
		"in flight, other environment": {[]client.Object{lease("n", held("x alpha~", "x1", 59*time.Second))}, "n beta~", "InFlight: x/x1@59s"},
		"in flight, same try":          {[]client.Object{lease("n", held("x alpha~", "x1", time.Second))}, "n alpha~", "InFlight: x/x1@1s"},
		"in flight, earlier try":       {[]client.Object{lease("n", held("x alpha~", "x1", time.Second))}, "n alpha~ try_number=2", "admit: x/x1@1s n/n1@0s"},
		"in flight, both declared":     {[]client.Object{lease("n", held("x alpha!", "x1", time.Second))}, "n beta!", "admit: x/x1@1s n/n1@0s"},
		"in flight, one declared":      {[]client.Object{lease("n", held("x alpha~", "x1", time.Second))}, "n beta!", "InFlight: x/x1@1s"},
		"expired":                      {[]client.Object{lease("n", held("x alpha~", "x1", GracePeriod))}, "n beta~", "admit: n/n1@0s"},
		"live":                         {[]client.Object{lease("n", held("x alpha~", "x1", long)), newPod("x alpha~", "x1")}, "n beta~", "DuplicateEnvironment: x/x1@1m30s"},
		// A Pending pod is not dead, however long it has been so.
		"Pending for long": {[]client.Object{lease("n", held("x", "x1", 24*time.Hour)), newPod("x", "x1")}, "n", "DuplicateTry: x/x1@24h0m0s"},
		"ended, other environment": {[]client.Object{lease("n", held("x alpha~", "x1", long)), ended(newPod("x alpha~", "x1"))}, "n beta~",
			"LeftoverEnvironment: x/x1@1m30s"},
		"ended, same environment": {[]client.Object{lease("n", held("x alpha~", "x1", long)), ended(newPod("x alpha~", "x1"))}, "n alpha~",
			"admit: x/x1@1m30s n/n1@0s"},
		"checked": {[]client.Object{lease("n", held("x alpha~", "x1", 0)), checked(newPod("x alpha~", "x1"))}, "n beta~", "admit: n/n1@0s"},
		// Matching by name would treat it as the holder.
		"another pod under the name, other task": {[]client.Object{lease("n", held("x alpha~", "x1", long)), newPod("x alpha~ task_id=other", "x2")}, "n beta~", "admit: n/n1@0s"},
		"another pod under the name, this task": {[]client.Object{lease("n", held("x alpha!", "x1", long)), newPod("x alpha!", "x2")}, "n beta!",
			"admit: x/x2@1h0m0s n/n1@0s"},
		"what is found counts as what it is": {[]client.Object{lease("n", held("x beta~", "x1", long)), newPod("x alpha~", "x2")}, "n beta~",
			"DuplicateEnvironment: x/x1@1m30s"},
		// A replayed request must not reject itself, nor forget its first attempt.
		"replayed with another UID": {[]client.Object{lease("n", held("n alpha~", "n0", time.Second))}, "n alpha~", "admit: n/n0@1s n/n1@0s"},
		// What the API server refuses for its name adds no holder.
		"its own name is taken":          {[]client.Object{lease("n", held("n alpha~", "n0", long)), newPod("n alpha~", "n0")}, "n alpha~", "NameTaken: n/n0@1m30s"},
		"taken by another environment":   {[]client.Object{lease("n", held("n beta!", "n0", long)), newPod("n beta!", "n0")}, "n alpha!", "DuplicateEnvironment: n/n0@1m30s"},
		"taken, and ended":               {[]client.Object{lease("n", held("n beta!", "n0", long)), ended(newPod("n beta!", "n0"))}, "n alpha!", "LeftoverEnvironment: n/n0@1m30s"},
		"taken by a pod of another task": {[]client.Object{lease("n", held("n alpha~", "n0", time.Second)), newPod("n alpha~ task_id=other", "n2")}, "n alpha~", "NameTaken: n/n0@1s"},
		"taken by a pod that is no task": {[]client.Object{lease("n", held("n alpha~", "n0", time.Second)), newPod("n kubernetes_pod_operator-", "n2")}, "n alpha~", "NameTaken: n/n0@1s"},
		"the name of another is taken":   {[]client.Object{lease("n", held("x alpha~", "x0", long)), newPod("x kubernetes_pod_operator-", "x2")}, "n alpha~", "admit: n/n1@0s"},
		"written before":                 {[]client.Object{lease("n", held("n alpha~", "n1", time.Second))}, "n alpha~", "admit: n/n1@0s"},
		"same name, other environment":   {[]client.Object{lease("n", held("n alpha~", "n0", time.Second))}, "n beta~", "admit: n/n0@1s n/n1@0s"},
		// An unreadable claim may have any holder.
		"no annotation":                         {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Annotations = nil })}, "n", "InFlight: garbage /@0s"},
		"no JSON":                               {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Annotations[annotationHolders] = "hello" })}, "n", "InFlight: garbage /@0s"},
		"empty list":                            {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Annotations[annotationHolders] = "[]" })}, "n", "InFlight: garbage /@0s"},
		"null":                                  {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Annotations[annotationHolders] = "null" })}, "n", "InFlight: garbage /@0s"},
		"of a later version":                    {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Labels[Label] = "v2" })}, "n", "InFlight: garbage /@0s"},
		"its labels are gone":                   {[]client.Object{garbage(func(l *coordinationv1.Lease) { l.Labels = nil })}, "n", "admit: n/n1@0s"},
		"full of ended pods":                    {append([]client.Object{lease("n", many(maxHolders)...)}, manyEnded(maxHolders)...), "n", "503: "},
		"full of those gone":                    {[]client.Object{lease("n", many(maxHolders)...)}, "n", "admit: n/n1@0s"},
		"mapped beside mapped":                  {[]client.Object{lease("n map_index=1", held("x alpha~ map_index=1", "x1", 0))}, "n alpha~ map_index=2", "admit: n/n1@0s"},
		"mapped beside unmapped in flight":      {[]client.Object{lease("n", held("x alpha~", "x1", time.Second))}, "n beta~ map_index=1", "InFlight: none"},
		"mapped beside unmapped":                {[]client.Object{lease("n", held("x alpha~", "x1", long)), newPod("x alpha~", "x1")}, "n beta~ map_index=1", "DuplicateEnvironment: none"},
		"unmapped beside a mark":                {[]client.Object{lease("n", marked(held("x alpha~", "x1", 89*time.Second)))}, "n beta~", "InFlight: mark/@1m29s"},
		"unmapped beside a mark, both declared": {[]client.Object{lease("n", marked(held("x alpha!", "x1", 0)))}, "n beta!", "admit: mark/@0s n/n1@0s"},
		"unmapped beside an old mark":           {[]client.Object{lease("n", marked(held("x alpha~", "x1", long)))}, "n beta~", "admit: n/n1@0s"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for _, dryRun := range []bool{true, false} {
				c := cluster(tc.objects...)
				before := holdersOf(t, c, tc.line)
				d, err := claimsOn(c).Take(t.Context(), submission(tc.line), dryRun)
				got := "admit: "
				switch {
				case apierrors.IsServiceUnavailable(err):
					if want := "Airflow still finds 64 pods of jobs/foo-bar-dag-id/foo-bar-task-id/run_id=scheduled__2023-03-08T0130000000-77fa57adf; delete those that have ended"; !strings.Contains(err.Error(), want) {
						t.Errorf("%v lacks %q", err, want)
					}
					got = "503: "
				case err != nil:
					t.Fatal(err)
				case !d.Allowed:
					got = string(d.Reason) + ": "
				}
				after := holdersOf(t, c, tc.line)
				if dryRun {
					if after != before {
						t.Errorf("a dry run turned %s into %s", before, after)
					}
					if got != "503: " && !strings.HasPrefix(tc.want, got) && tc.want != "503: " {
						t.Errorf("dry run: %s, want %s", got, tc.want)
					}
					continue
				}
				if got != "503: " {
					got += after
				}
				if got != tc.want {
					t.Errorf("got  %s\nwant %s", got, tc.want)
				}
			}
		})
	}
}

func many(n int) []Holder {
	holders := make([]Holder, n)
	for i := range holders {
		holders[i] = held(fmt.Sprint("x", i), types.UID(fmt.Sprint("x", i)), 2*GracePeriod)
	}
	return holders
}

func manyEnded(n int) []client.Object {
	pods := make([]client.Object, n)
	for i := range pods {
		pods[i] = ended(newPod(fmt.Sprint("x", i), types.UID(fmt.Sprint("x", i))))
	}
	return pods
}

func TestMarks(t *testing.T) {
	family := func(objects ...client.Object) (client.Client, string) {
		c := cluster(objects...)
		if d, err := claimsOn(c).Take(t.Context(), submission("n alpha~ map_index=1"), false); err != nil || !d.Allowed {
			t.Fatalf("%v %+v", err, d)
		}
		return c, holdersOf(t, c, "n")
	}
	alpha, beta := held("x alpha~", "", 0), held("x beta~", "", 0)
	at := func(h Holder, ago time.Duration) Holder {
		h.ClaimedAt = metav1.NewTime(now.Add(-ago))
		return placeholderOf(h)
	}
	for name, tc := range map[string]struct {
		there []Holder
		want  string
	}{
		"none":                  {nil, "mark/@0s"},
		"fresh":                 {[]Holder{at(alpha, 29*time.Second)}, "mark/@29s"},
		"to be renewed":         {[]Holder{at(alpha, 30*time.Second)}, "mark/@0s"},
		"another environment's": {[]Holder{at(beta, time.Second)}, "mark/@1s mark/@0s"},
	} {
		t.Run(name, func(t *testing.T) {
			var objects []client.Object
			if tc.there != nil {
				objects = append(objects, lease("n", tc.there...))
			}
			c, got := family(objects...)
			if got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			if own := holdersOf(t, c, "n map_index=1"); own != "n/n1@0s" {
				t.Errorf("its own claim: %s", own)
			}
		})
	}
}

func failing(c client.WithWatch, times int, err error) client.WithWatch {
	var failed atomic.Int64
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if failed.Add(1) <= int64(times) {
				// The write succeeds, but its response is lost.
				if createErr := c.Create(ctx, obj, opts...); createErr != nil {
					return createErr
				}
				return err
			}
			return c.Create(ctx, obj, opts...)
		},
	})
}

func TestTakeWhenTheAPIServerFails(t *testing.T) {
	never := 1 << 30
	lease := coordinationv1.Resource("leases")
	for name, tc := range map[string]struct {
		times int
		err   error
		want  string // what it begins with
		cure  bool
	}{
		"a reset after the write":   {1, syscall.ECONNRESET, "admit", false},
		"a way to break of its own": {1, errors.New("http2: client connection force closed via ClientConn.Close"), "admit", false},
		"too many requests":         {1, apierrors.NewTooManyRequests("later", 1), "admit", false},
		"a server timeout":          {1, apierrors.NewServerTimeout(lease, "create", 1), "admit", false},
		"forbidden":                 {1, apierrors.NewForbidden(lease, "x", errors.New("no RBAC")), "creating claim claim-", true},
		"no namespace":              {1, apierrors.NewNotFound(corev1.Resource("namespaces"), "solepod"), "creating claim claim-", true},
		"no ServiceAccount":         {1, apierrors.NewUnauthorized("Unauthorized"), "creating claim claim-", true},
		"refused for ever":          {never, syscall.ECONNREFUSED, "no time left: creating claim claim-", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster()
			api := failing(c, tc.times, tc.err)
			if tc.times == never {
				api = interceptor.NewClient(c, interceptor.Funcs{
					Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return tc.err },
				})
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			got := "admit"
			d, err := claimsOn(api).Take(ctx, submission("n"), false)
			if err != nil {
				got = err.Error()
			}
			if !strings.HasPrefix(got, tc.want) || err == nil && !d.Allowed {
				t.Errorf("%s, %+v", got, d)
			}
			if cure := "; namespace solepod, or the permission to write claims in it, is missing: install solepod again, or delete its webhook configurations"; strings.HasSuffix(got, cure) != tc.cure {
				t.Errorf("%s, with the cure: want %v", got, tc.cure)
			}
			if tc.times == never && !apierrors.IsServiceUnavailable(err) {
				t.Errorf("%v is no 503", err)
			}
		})
	}
}

// Under the deadline, others that write all the time are a denial that
// recent providers of Airflow answer by trying again.
func TestTakeUnderContention(t *testing.T) {
	c := interceptor.NewClient(cluster(lease("n", held("x", "x1", GracePeriod))), interceptor.Funcs{
		Update: func(_ context.Context, _ client.WithWatch, obj client.Object, _ ...client.UpdateOption) error {
			return apierrors.NewConflict(coordinationv1.Resource("leases"), obj.GetName(), errors.New("changed"))
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	d, err := claimsOn(c).Take(ctx, submission("n"), false)
	if err != nil || d.Allowed || d.Code != 409 || d.Reason != policy.InFlight {
		t.Fatalf("%v %+v", err, d)
	}
	if want := "solepod: another pod of this task is being created. Existing pod: jobs/unknown, environment unknown"; !strings.HasPrefix(d.Message, want) {
		t.Error(d.Message)
	}
}

// A pod in flight is mostly there in a moment.
func TestPatience(t *testing.T) {
	c := cluster(lease("n", held("x alpha~", "x1", time.Second)))
	looks := 0
	api := interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if _, ok := obj.(*corev1.Pod); ok {
				if looks++; looks == 3 {
					if err := c.Create(ctx, newPod("x alpha~", "x1")); err != nil {
						return err
					}
				}
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	claims := claimsOn(api)
	claims.Patience = time.Hour
	d, err := claims.Take(t.Context(), submission("n beta~"), false)
	if err != nil || d.Reason != policy.DuplicateEnvironment || looks != 3 {
		t.Errorf("%v %+v after %d looks", err, d, looks)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	claims.API = cluster(lease("n", held("x alpha~", "x1", time.Second)))
	if d, err := claims.Take(ctx, submission("n beta~"), false); err != nil || d.Reason != policy.InFlight {
		t.Errorf("until the deadline: %v %+v", err, d)
	}
}

func TestReconcile(t *testing.T) {
	const long = 2 * GracePeriod
	future := held("x", "x1", -24*time.Hour)
	broken := func(l *coordinationv1.Lease) *coordinationv1.Lease {
		l.Annotations[annotationHolders] = "hello"
		return l
	}
	noLabels := func(l *coordinationv1.Lease) *coordinationv1.Lease {
		l.Labels = nil
		return l
	}
	tests := map[string]struct {
		objects []client.Object
		unseen  []client.Object // there, but not in the cache
		gone    types.UID
		want    string
		wait    time.Duration
	}{
		"nothing":                  {want: "none"},
		"a pod without a claim":    {objects: []client.Object{newPod("x", "x1")}, want: "x/x1@1h0m0s"},
		"two pods without a claim": {objects: []client.Object{newPod("x", "x1"), newPod("y", "y1")}, want: "x/x1@1h0m0s y/y1@1h0m0s"},
		"a pod that is checked":    {objects: []client.Object{checked(newPod("x", "x1"))}, want: "none"},
		"a pod that has ended":     {objects: []client.Object{ended(newPod("x", "x1"))}, want: "x/x1@1h0m0s"},
		"in flight":                {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))}, want: "x/x1@20s", wait: 40 * time.Second},
		"in flight, and gone":      {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))}, gone: "x1", want: "none"},
		"in flight, its label taken off": {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))},
			unseen: []client.Object{newPod("x kubernetes_pod_operator-", "x1")}, gone: "x1", want: "x/x1@20s", wait: 40 * time.Second},
		"expired, its label taken off": {objects: []client.Object{lease("x", held("x", "x1", GracePeriod))},
			unseen: []client.Object{newPod("x kubernetes_pod_operator-", "x1")}, gone: "x1", want: "none"},
		"in flight, its label put back": {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))},
			unseen: []client.Object{newPod("x", "x1")}, gone: "x1", want: "x/x1@20s"},
		"in flight, and replaced": {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))},
			unseen: []client.Object{newPod("x", "x2")}, gone: "x1", want: "none"},
		"in flight, another is gone":     {objects: []client.Object{lease("x", held("x", "x1", 20*time.Second))}, gone: "x0", want: "x/x1@20s", wait: 40 * time.Second},
		"held":                           {objects: []client.Object{lease("x", held("x", "x1", long)), newPod("x", "x1")}, want: "x/x1@2m0s"},
		"held, then checked":             {objects: []client.Object{lease("x", held("x", "x1", long)), checked(newPod("x", "x1"))}, want: "none"},
		"expired":                        {objects: []client.Object{lease("x", held("x", "x1", GracePeriod))}, want: "none"},
		"expired, but there":             {objects: []client.Object{lease("x", held("x", "x1", GracePeriod))}, unseen: []client.Object{newPod("x", "x1")}, want: "x/x1@1m0s"},
		"expired, another has the name":  {objects: []client.Object{lease("x", held("x", "x1", GracePeriod))}, unseen: []client.Object{newPod("x", "x2")}, want: "none"},
		"replaced under its name":        {objects: []client.Object{lease("x", held("x", "x1", GracePeriod)), newPod("x", "x2")}, want: "x/x2@1h0m0s"},
		"one of two is gone":             {objects: []client.Object{lease("x", held("x", "x1", long), held("y", "y1", long)), newPod("y", "y1")}, want: "y/y1@2m0s"},
		"a mark":                         {objects: []client.Object{lease("x", marked(held("x", "", 80*time.Second)))}, want: "mark/@1m20s", wait: 10 * time.Second},
		"an old mark":                    {objects: []client.Object{lease("x", marked(held("x", "", 90*time.Second)))}, want: "none"},
		"garbage":                        {objects: []client.Object{broken(lease("x", held("x", "x1", 0)))}, want: "/@0s", wait: GracePeriod},
		"garbage, no labels":             {objects: []client.Object{noLabels(broken(lease("x", held("x", "x1", 0))))}, want: "/@0s", wait: GracePeriod},
		"garbage with a pod":             {objects: []client.Object{broken(lease("x", held("x", "x1", 0))), newPod("x", "x1")}, want: "/@0s x/x1@1h0m0s", wait: GracePeriod},
		"of the future":                  {objects: []client.Object{lease("x", future)}, want: "x/x1@0s", wait: GracePeriod},
		"labels taken off, pod is there": {objects: []client.Object{noLabels(lease("x", held("x", "x1", long))), newPod("x", "x1")}, want: "x/x1@2m0s"},
		"labels taken off, expired":      {objects: []client.Object{noLabels(lease("x", held("x", "x1", long)))}, want: "none"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cache, live := cluster(tc.objects...), cluster(append(tc.objects, tc.unseen...)...)
			r := &Reconciler{Cache: cache, Pods: known{cache}, API: live, Namespace: "solepod", Settings: modelSettings,
				Deleted: func(uid types.UID) bool { return uid == tc.gone && uid != "" }, Now: func() time.Time { return now }}
			id, _ := taskpod.FromMeta(newPod("x", ""), "").Identity()
			result, err := r.Reconcile(t.Context(), Request(Name(id)))
			if err != nil {
				t.Fatal(err)
			}
			if got := holdersOf(t, live, "x"); got != tc.want {
				t.Errorf("holders %s, want %s", got, tc.want)
			}
			if result.RequeueAfter != tc.wait {
				t.Errorf("again after %s, want %s", result.RequeueAfter, tc.wait)
			}
			if l := leaseOf(t, live, "x"); l != nil && name != "garbage, no labels" && name != "labels taken off, pod is there" {
				if of, ok := identityOf(l); !ok || of != id {
					t.Errorf("the claim is labelled %v", l.Labels)
				}
			}
		})
	}
}

// A cache that is behind is noticed by a conflict, and looked at again.
func TestReconcileFromAnOldCache(t *testing.T) {
	for name, tc := range map[string]struct{ cached, live []client.Object }{
		"the claim is not known yet": {[]client.Object{newPod("x", "x1")}, []client.Object{newPod("x", "x1"), lease("x", held("y", "y1", 0))}},
		"the claim is gone already":  {[]client.Object{newPod("y", "y1"), lease("x", held("x", "x1", 2*GracePeriod))}, []client.Object{newPod("y", "y1")}},
	} {
		t.Run(name, func(t *testing.T) {
			live := cluster(tc.live...)
			before := holdersOf(t, live, "x")
			cache := cluster(tc.cached...)
			r := &Reconciler{Cache: cache, Pods: known{cache}, API: live, Namespace: "solepod", Settings: modelSettings, Deleted: nobody, Now: func() time.Time { return now }}
			id, _ := taskpod.FromMeta(newPod("x", ""), "").Identity()
			result, err := r.Reconcile(t.Context(), Request(Name(id)))
			if err != nil || result.RequeueAfter != retryAfter {
				t.Errorf("%v, again after %s", err, result.RequeueAfter)
			}
			if after := holdersOf(t, live, "x"); after != before {
				t.Errorf("%s became %s", before, after)
			}
		})
	}
}

// recorded is a queue that remembers what was added.
type recorded struct {
	workqueue.TypedRateLimitingInterface[Request]
	added []string
}

func (r *recorded) add(req Request, after time.Duration) {
	r.added = append(r.added, fmt.Sprintf("%s after %s", short(req), after))
}
func (r *recorded) Add(req Request)                           { r.add(req, 0) }
func (r *recorded) AddAfter(req Request, after time.Duration) { r.add(req, after) }

func short(req Request) Request { return req[len(prefix) : len(prefix)+4] }

func TestPodEvents(t *testing.T) {
	meta := func(line string, uid types.UID) podEvent {
		return &metav1.PartialObjectMetadata{ObjectMeta: newPod(line, uid).ObjectMeta}
	}
	own, other := short(claimOfPod(meta("x", ""))), short(claimOfPod(meta("x run_id=other", "")))
	at := func(claim Request, after string) string { return fmt.Sprintf("%s after %s", claim, after) }
	// Pod 1 is created, updated to, or deleted.
	for name, tc := range map[string]struct {
		created, before, after, deleted podEvent
		want                            []string
		gone                            bool
	}{
		"created":              {created: meta("x", "1"), want: []string{at(own, "1s")}},
		"no task pod":          {created: meta("x airflow-worker=1", "1")},
		"deleted":              {deleted: meta("x", "1"), want: []string{at(own, "0s")}, gone: true},
		"its status changed":   {before: meta("x", "1"), after: meta("x", "1")},
		"checked":              {before: meta("x", "1"), after: meta("x already_checked=True", "1"), want: []string{at(own, "0s"), at(own, "0s")}},
		"another task's now":   {before: meta("x", "1"), after: meta("x run_id=other", "1"), want: []string{at(own, "0s"), at(other, "0s")}},
		"no task pod any more": {before: meta("x", "1"), after: meta("x airflow-worker=1", "1"), want: []string{at(own, "0s")}},
		// What a watch reports after an interruption.
		"deleted and created again": {before: meta("x", "1"), after: meta("x", "2"), want: []string{at(own, "0s"), at(own, "0s")}, gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			q, gone := &recorded{}, NewDeletedPods()
			events := podEvents(gone)
			switch {
			case tc.created != nil:
				events.Create(t.Context(), event.TypedCreateEvent[podEvent]{Object: tc.created}, q)
			case tc.deleted != nil:
				events.Delete(t.Context(), event.TypedDeleteEvent[podEvent]{Object: tc.deleted}, q)
			default:
				events.Update(t.Context(), event.TypedUpdateEvent[podEvent]{ObjectOld: tc.before, ObjectNew: tc.after}, q)
			}
			if diff := cmp.Diff(tc.want, q.added); diff != "" {
				t.Error(diff)
			}
			if gone.Has("1") != tc.gone || gone.Has("2") {
				t.Errorf("gone: 1 %v, 2 %v", gone.Has("1"), gone.Has("2"))
			}
		})
	}
}

// informer hands its handler out.
type informer struct {
	cache.Informer
	handler toolscache.ResourceEventHandler
}

func (i *informer) AddEventHandler(h toolscache.ResourceEventHandler) (toolscache.ResourceEventHandlerRegistration, error) {
	i.handler = h
	return nil, nil
}

// A watch may have missed a deletion, and may not even know of what.
func TestGone(t *testing.T) {
	pod := func(uid types.UID) client.Object { return newPod("x", uid) }
	for name, tc := range map[string]struct {
		happens func(toolscache.ResourceEventHandler)
		want    bool
	}{
		"created":  {func(h toolscache.ResourceEventHandler) { h.OnAdd(pod("1"), false) }, false},
		"updated":  {func(h toolscache.ResourceEventHandler) { h.OnUpdate(pod("1"), pod("1")) }, false},
		"replaced": {func(h toolscache.ResourceEventHandler) { h.OnUpdate(pod("1"), pod("2")) }, true},
		"deleted":  {func(h toolscache.ResourceEventHandler) { h.OnDelete(pod("1")) }, true},
		"deletion missed": {func(h toolscache.ResourceEventHandler) {
			h.OnDelete(toolscache.DeletedFinalStateUnknown{Obj: pod("1")})
		}, true},
		"last state not known": {func(h toolscache.ResourceEventHandler) {
			h.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "jobs/x"})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			gone, pods := NewDeletedPods(), &informer{}
			if err := gone.Watch(pods); err != nil {
				t.Fatal(err)
			}
			tc.happens(pods.handler)
			if gone.Has("1") != tc.want || gone.Has("2") {
				t.Errorf("gone: 1 %v, 2 %v", gone.Has("1"), gone.Has("2"))
			}
		})
	}
}

func TestLeaseEvents(t *testing.T) {
	claim, election := string(claimOfPod(&metav1.PartialObjectMetadata{ObjectMeta: newPod("x", "").ObjectMeta})), "solepod"
	for _, name := range []string{claim, election} {
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}}
		q, events := &recorded{}, leaseEvents()
		events.Create(t.Context(), event.TypedCreateEvent[leaseEvent]{Object: lease}, q)
		events.Update(t.Context(), event.TypedUpdateEvent[leaseEvent]{ObjectOld: lease, ObjectNew: lease}, q)
		events.Delete(t.Context(), event.TypedDeleteEvent[leaseEvent]{Object: lease}, q)
		var want []string
		if name == claim {
			for _, after := range []string{"1s", "0s", "0s"} {
				want = append(want, fmt.Sprintf("%s after %s", short(Request(claim)), after))
			}
		}
		if diff := cmp.Diff(want, q.added); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
