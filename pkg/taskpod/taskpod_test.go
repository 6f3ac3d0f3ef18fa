package taskpod

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// incident is what both environments put on their pods on 2023-03-08.
func incident(extra ...string) map[string]string {
	set := map[string]string{
		"dag_id":                  "foo-bar-dag-id",
		"task_id":                 "foo-bar-task-id",
		"run_id":                  "scheduled__2023-03-08T0130000000-77fa57adf",
		"kubernetes_pod_operator": "True",
		"try_number":              "1",
	}
	for _, kv := range extra {
		if key, drop := strings.CutSuffix(kv, "-"); drop {
			delete(set, key)
			continue
		}
		key, value, _ := strings.Cut(kv, "=")
		set[key] = value
	}
	return set
}

func TestIdentity(t *testing.T) {
	want := Identity{
		Namespace: "data-jobs", DAG: "foo-bar-dag-id", Task: "foo-bar-task-id",
		RunLabel: "run_id", Run: "scheduled__2023-03-08T0130000000-77fa57adf",
	}
	with := func(change func(*Identity)) *Identity {
		id := want
		change(&id)
		return &id
	}
	tests := map[string]struct {
		labels map[string]string
		want   *Identity // nil: not a task pod
	}{
		"the incident":              {incident(), &want},
		"the try is not part of it": {incident("try_number=7"), &want},
		"nor is any other label":    {incident("airflow_version=2.5.1", "parent_dag_id=foo", "airflow-environment=alpha"), &want},
		"mapped":                    {incident("map_index=0"), with(func(i *Identity) { i.Mapped, i.MapIndex = true, "0" })},
		"provider before 3.1.0": {incident("run_id-", "execution_date=2023-03-08T0130000000-77fa57adf"),
			with(func(i *Identity) { i.RunLabel, i.Run = "execution_date", "2023-03-08T0130000000-77fa57adf" })},
		"run_id goes before execution_date": {incident("execution_date=2023-03-08"), &want},
		"empty values are values":           {incident("run_id=", "dag_id="), with(func(i *Identity) { i.DAG, i.Run = "", "" })},
		"63 characters": {incident("run_id=" + strings.Repeat("r", 63)),
			with(func(i *Identity) { i.Run = strings.Repeat("r", 63) })},
		"neither run_id nor execution_date": {incident("run_id-"), nil},
		"no dag_id":                         {incident("dag_id-"), nil},
		"no task_id":                        {incident("task_id-"), nil},
		"not a KubernetesPodOperator":       {incident("kubernetes_pod_operator-", "spark_kubernetes_operator=True"), nil},
		"another spelling of true":          {incident("kubernetes_pod_operator=true"), nil},
		"a KubernetesExecutor worker":       {incident("airflow-worker=42", "kubernetes_executor=True"), nil},
		"no labels":                         {nil, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			id, ok := Pod{Namespace: "data-jobs", Labels: tc.labels}.Identity()
			if ok != (tc.want != nil) {
				t.Fatalf("task pod: %v", ok)
			}
			if tc.want != nil && id != *tc.want {
				t.Error(cmp.Diff(*tc.want, id))
			}
		})
	}
}

// The wanted strings are what KubernetesPodOperator._build_find_pod_label_selector
// of provider 10.25.0 returned for the incident's run (with Airflow 2.11.0).
func TestSelectorIsAirflows(t *testing.T) {
	const (
		undeclared = "dag_id=foo-bar-dag-id,kubernetes_pod_operator=True,run_id=scheduled__2023-03-08T0130000000-77fa57adf,task_id=foo-bar-task-id,already_checked!=True,!airflow-worker"
		mapped     = "dag_id=foo-bar-dag-id,kubernetes_pod_operator=True,map_index=3,run_id=scheduled__2023-03-08T0130000000-77fa57adf,task_id=foo-bar-task-id,already_checked!=True,!airflow-worker"
		declared   = "airflow-environment=alpha,dag_id=foo-bar-dag-id,kubernetes_pod_operator=True,run_id=scheduled__2023-03-08T0130000000-77fa57adf,task_id=foo-bar-task-id,already_checked!=True,!airflow-worker"
	)
	tests := map[string]struct {
		pod  Pod
		key  string
		want string
	}{
		"undeclared": {Pod{Labels: incident()}, DefaultEnvironmentLabel, undeclared},
		"mapped":     {Pod{Labels: incident("map_index=3")}, DefaultEnvironmentLabel, mapped},
		"declared":   {Pod{Labels: incident("airflow-environment=alpha", "solepod.io/declared=v1")}, DefaultEnvironmentLabel, declared},
		"labelled":   {Pod{Labels: incident("airflow-environment=alpha")}, DefaultEnvironmentLabel, undeclared},
		"stamped":    {Pod{Labels: incident("airflow-environment=alpha"), Stamped: true}, DefaultEnvironmentLabel, undeclared},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			want, err := labels.Parse(tc.want)
			if err != nil {
				t.Fatal(err)
			}
			if got := tc.pod.Selector(tc.key).String(); got != want.String() {
				t.Errorf("selector\n got %s\nwant %s", got, want)
			}
			if !tc.pod.Selector(tc.key).Matches(labels.Set(tc.pod.Labels)) {
				t.Error("the selector does not match its own pod")
			}
		})
	}
	if s := (Pod{}).Selector(""); !s.Empty() && s.Matches(labels.Set(incident())) {
		t.Error("the selector of a pod that is no task pod matches one")
	}
}

func TestOverlapsIsWhatSelectorsSay(t *testing.T) {
	variants := []Pod{}
	for _, extra := range [][]string{
		nil, {"map_index=0"}, {"map_index=1"}, {"map_index="},
		{"run_id=other"}, {"task_id=other"}, {"dag_id=other"},
		{"run_id-", "execution_date=other"},
		{"run_id-", "execution_date=scheduled__2023-03-08T0130000000-77fa57adf"},
	} {
		variants = append(variants, Pod{Labels: incident(extra...)})
	}
	for _, a := range variants {
		for _, b := range variants {
			aid, _ := a.Identity()
			bid, _ := b.Identity()
			want := a.Selector("").Matches(labels.Set(b.Labels)) || b.Selector("").Matches(labels.Set(a.Labels))
			if got := aid.Overlaps(bid); got != want {
				t.Errorf("%s overlaps %s: %v, the selectors say %v", aid, bid, got, want)
			}
			if (aid.String() == bid.String()) != (aid == bid) {
				t.Errorf("%q and %q: equal strings and equal identities differ", aid, bid)
			}
		}
	}
}

func TestFromMeta(t *testing.T) {
	born := time.Date(2023, 3, 8, 9, 13, 29, 0, time.UTC)
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "data-jobs", Name: "export-action-log-4devg7t1", UID: "u1", Labels: incident("airflow-environment=alpha", "solepod.io/declared=v1"),
			CreationTimestamp: metav1.NewTime(born),
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	want := Pod{
		Namespace: "data-jobs", Name: "export-action-log-4devg7t1", UID: "u1", Labels: incident("airflow-environment=alpha", "solepod.io/declared=v1"),
		Phase: corev1.PodRunning, Created: born,
	}
	if diff := cmp.Diff(want, FromMeta(pod, pod.Status.Phase)); diff != "" {
		t.Error(diff)
	}
	if !want.Guarded() || !want.Declares(DefaultEnvironmentLabel) || want.Finished() || want.Checked() {
		t.Errorf("guarded %v, declares %v, finished %v, checked %v",
			want.Guarded(), want.Declares(DefaultEnvironmentLabel), want.Finished(), want.Checked())
	}

	now := metav1.NewTime(born.Add(time.Hour))
	pod.DeletionTimestamp = &now
	pod.Annotations = map[string]string{"solepod.io/environment": "stamped", "kubernetes.io/config.mirror": "x"}
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", Name: "j", Controller: &yes}}
	got := FromMeta(pod, pod.Status.Phase)
	want.Stamped, want.Mirror, want.ControllerOwned, want.Deleting = true, true, true, true
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.Guarded() || got.Declares(DefaultEnvironmentLabel) || !got.Finished() {
		t.Errorf("guarded %v, declares %v, finished %v", got.Guarded(), got.Declares(DefaultEnvironmentLabel), got.Finished())
	}

	// An owner that is no controller does not make a pod a controller's.
	pod.OwnerReferences[0].Controller = nil
	if FromMeta(pod, "").ControllerOwned {
		t.Error("owned by a controller without one")
	}
}

func TestFinishedAndTry(t *testing.T) {
	for phase, want := range map[corev1.PodPhase]bool{
		corev1.PodPending: false, corev1.PodRunning: false, corev1.PodUnknown: false, "": false,
		corev1.PodSucceeded: true, corev1.PodFailed: true,
	} {
		if got := (Pod{Phase: phase}).Finished(); got != want {
			t.Errorf("phase %q: finished %v", phase, got)
		}
	}
	for label, want := range map[string]int{"1": 1, "12": 12} {
		if got, ok := (Pod{Labels: map[string]string{"try_number": label}}).Try(); !ok || got != want {
			t.Errorf("try %q: %d %v", label, got, ok)
		}
	}
	for _, labels := range []map[string]string{nil, {"try_number": ""}, {"try_number": "two"}} {
		if _, ok := (Pod{Labels: maps.Clone(labels)}).Try(); ok {
			t.Errorf("%v names a try", labels)
		}
	}
}

// A task is over when its base container has ended, with any sidecar.
func TestFromPod(t *testing.T) {
	at := metav1.NewTime(time.Date(2023, 3, 8, 9, 0, 0, 0, time.UTC))
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: at}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	type status = corev1.ContainerStatus
	for name, tc := range map[string]struct {
		containers string
		statuses   []status
		change     func(*corev1.Pod)
		want       *Over
	}{
		"a sidecar runs on":      {"base istio-proxy", []status{{Name: "base", State: ended}, {Name: "istio-proxy", State: running}}, nil, &Over{"base", at.Time, []string{"istio-proxy"}}},
		"a sidecar goes first":   {"istio-proxy base", []status{{Name: "istio-proxy", State: running}, {Name: "base", State: ended}}, nil, &Over{"base", at.Time, []string{"istio-proxy"}}},
		"another name":           {"main side", []status{{Name: "main", State: ended}, {Name: "side", State: running}}, nil, &Over{"main", at.Time, []string{"side"}}},
		"a sidecar has not come": {"base side", []status{{Name: "base", State: ended}, {Name: "side", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}}}, nil, &Over{"base", at.Time, []string{"side"}}},
		"the base runs":          {"base side", []status{{Name: "base", State: running}, {Name: "side", State: ended}}, nil, nil},
		"all have ended":         {"base side", []status{{Name: "base", State: ended}, {Name: "side", State: ended}}, nil, nil},
		"no status":              {"base side", nil, nil, nil},
		"it is restarted":        {"base side", []status{{Name: "base", State: ended}, {Name: "side", State: running}}, func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyAlways }, nil},
		"no containers":          {"", nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{
				Spec:   corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: tc.statuses},
			}
			for _, container := range strings.Fields(tc.containers) {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: container})
			}
			if tc.change != nil {
				tc.change(pod)
			}
			got := FromPod(pod)
			if diff := cmp.Diff(tc.want, got.Over); diff != "" || got.Finished() != (tc.want != nil) {
				t.Error(diff, got.Finished())
			}
		})
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &at, Finalizers: []string{"a/b", "c/d"}}, Spec: corev1.PodSpec{NodeName: "n1"}}
	for _, want := range []string{"it waits for its finalizers: a/b, c/d; the kubelet of node n1", "it waits for the kubelet of node n1", "it waits for the API server"} {
		if got := FromPod(pod); got.Deletion.WaitsFor() != want || !got.Deletion.Due.Equal(at.Time) {
			t.Errorf("%q, want %q", got.Deletion.WaitsFor(), want)
		}
		if pod.Finalizers == nil {
			pod.Spec.NodeName = ""
		}
		pod.Finalizers = nil
	}
}
