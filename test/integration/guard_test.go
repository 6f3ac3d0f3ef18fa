package integration

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/pkg/webhook"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// reasonIn is the reason code at the end of a denial, with its HTTP status;
// "admit" for no error.
func reasonIn(err error) string {
	if err == nil {
		return "admit"
	}
	status, ok := err.(apierrors.APIStatus)
	reason := regexp.MustCompile(`\[(\w+)\]$`).FindStringSubmatch(err.Error())
	if !ok || reason == nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s %s", status.Status().Code, status.Status().Reason, reason[1])
}

// found counts the pods that Airflow finds when it looks for a pod: it lists
// them at the API server by its own selector.
func (w *world) found(pod *corev1.Pod) int {
	w.t.Helper()
	var list corev1.PodList
	selector := taskpod.FromMeta(pod, "").Selector(taskpod.DefaultEnvironmentLabel)
	if err := w.admin.List(w.t.Context(), &list, client.InNamespace(w.jobs), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		w.t.Fatal(err)
	}
	return len(list.Items)
}

func TestIncident(t *testing.T) {
	shared.Run(t, plane)

	t.Run("the duplicate is rejected", func(t *testing.T) {
		w := newWorld(t, "incident")
		alpha := w.mustCreate(w.airflow("alpha"), "export-action-log-4devg7t1")
		_, err := w.create(w.airflow("production"), "export-action-log-rzwroznv")
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			t.Fatal(got)
		}
		message := err.Error()
		for _, want := range []string{
			`admission webhook "guard.solepod.io" denied the request: solepod: another Airflow environment is already running this task. `,
			"Existing pod: incident-jobs/export-action-log-4devg7t1, environment alpha (stamped, not declared), phase Pending, try 1, age ",
			"Task: foo-bar-task-id of DAG foo-bar-dag-id, run scheduled__2023-03-08T0130000000-77fa57adf, try 1. ",
			"Requested by system:serviceaccount:incident-production:airflow, environment production. ",
		} {
			if !strings.Contains(message, want) {
				t.Errorf("message\n%s\nlacks\n%s", message, want)
			}
		}
		if n := w.found(alpha); n != 1 {
			t.Errorf("alpha's selector matches %d pods", n)
		}
	})

	t.Run("declared environments are kept apart", func(t *testing.T) {
		w := newWorld(t, "declared")
		alpha := w.mustCreate(w.airflow("alpha"), "export-action-log-4devg7t1 alpha!")
		production := w.mustCreate(w.airflow("production"), "export-action-log- production!")
		for _, pod := range []*corev1.Pod{alpha, production} {
			if n := w.found(pod); n != 1 {
				t.Errorf("the selector of %s matches %d pods", pod.Name, n)
			}
		}
	})
}

// setState brings an existing pod into a state of the decision table.
func (w *world) setState(pod *corev1.Pod, state string) {
	w.t.Helper()
	ctx := w.t.Context()
	switch state {
	case "Pending":
	case "Running", "Succeeded", "Failed":
		pod.Status.Phase = corev1.PodPhase(state)
		if err := w.admin.Status().Update(ctx, pod); err != nil {
			w.t.Fatal(err)
		}
	case "deleting":
		pod.Finalizers = []string{"test.solepod.io/hold"}
		if err := w.admin.Update(ctx, pod); err != nil {
			w.t.Fatal(err)
		}
		if err := w.admin.Delete(ctx, pod); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { // let the namespace go
			patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
			if err := w.admin.Patch(w.t.Context(), pod, patch); client.IgnoreNotFound(err) != nil && w.t.Context().Err() == nil {
				w.t.Error(err)
			}
		})
	case "gone":
		if err := w.admin.Delete(ctx, pod, client.GracePeriodSeconds(0)); err != nil {
			w.t.Fatal(err)
		}
	default:
		w.t.Fatalf("state %q?", state)
	}
}

// TestCreateTable walks the decision table on creation through the API server.
func TestCreateTable(t *testing.T) {
	shared.Run(t, plane)
	const (
		duplicate = "403 Forbidden DuplicateEnvironment"
		leftover  = "409 Conflict LeftoverEnvironment"
		sameTry   = "403 Forbidden DuplicateTry"
		mismatch  = "403 Forbidden EnvironmentMismatch"
	)
	declared := func(env string) string {
		if env == "" {
			return " airflow-environment="
		}
		return " " + env + "!"
	}
	rows := []struct {
		name     string
		existing string // environment, pod
		state    string
		incoming string // environment, pod
		want     string
	}{
		{"declared beside declared", "alpha x" + declared("alpha"), "Running", "production n" + declared("production"), "admit"},
		{"declared beside declared and finished", "alpha x" + declared("alpha"), "Failed", "production n" + declared("production"), "admit"},
		{"declared beside stamped", "alpha x", "Running", "production n" + declared("production"), duplicate},
		{"stamped beside declared", "alpha x" + declared("alpha"), "Running", "production n", duplicate},
		{"stamped beside stamped", "alpha x", "Running", "production n", duplicate},
		{"a later try does not help", "alpha x", "Running", "production n try_number=2", duplicate},
		{"known beside unknown", "unknown x", "Pending", "production n", duplicate},
		{"unknown beside known", "alpha x", "Pending", "unknown n", duplicate},
		{"other environment, succeeded", "alpha x", "Succeeded", "production n", leftover},
		{"other environment, failed", "alpha x", "Failed", "production n", leftover},
		{"other environment, being deleted", "alpha x", "deleting", "production n", leftover},
		{"other environment, gone", "alpha x", "gone", "production n", "admit"},
		{"other environment, Airflow is done with it", "alpha x already_checked=True", "Succeeded", "production n", "admit"},
		{"same environment, same try", "alpha x", "Running", "alpha n", sameTry},
		{"same environment, earlier try", "alpha x try_number=2", "Running", "alpha n", sameTry},
		{"same environment, later try", "alpha x", "Running", "alpha n try_number=2", "admit"},
		{"same environment, finished", "alpha x", "Succeeded", "alpha n", "admit"},
		{"same environment, being deleted", "alpha x", "deleting", "alpha n", "admit"},
		{"both unknown", "unknown x", "Running", "unknown n", sameTry},
		{"both unknown, later try", "unknown x", "Running", "unknown n try_number=2", "admit"},
		{"stamped and declared of one environment", "alpha x", "Running", "alpha n" + declared("alpha"), sameTry},
		{"generated name", "alpha x-", "Running", "production n-", duplicate},
		{"another map index", "alpha x map_index=0", "Running", "production n map_index=1", "admit"},
		{"the same map index", "alpha x map_index=1", "Running", "production n map_index=1", duplicate},
		{"mapped beside unmapped", "alpha x", "Running", "production n map_index=1", duplicate},
		{"unmapped beside mapped", "alpha x map_index=1", "Running", "production n", duplicate},
		{"another run", "alpha x run_id=other", "Running", "production n", "admit"},
		{"execution_date of an old provider", "alpha x run_id- execution_date=2023", "Running", "production n run_id- execution_date=2023", duplicate},
		{"no run at all is no task pod", "alpha x run_id-", "Running", "production n run_id-", "admit"},
		{"empty label values", "alpha x run_id=", "Running", "production n run_id=", duplicate},
		{"63 characters", "alpha x run_id=" + strings.Repeat("r", 63), "Running", "production n run_id=" + strings.Repeat("r", 63), duplicate},
		{"a KubernetesExecutor worker", "alpha x", "Running", "production n airflow-worker=1", "admit"},
		{"beside a KubernetesExecutor worker", "alpha x airflow-worker=1", "Running", "production n", "admit"},
		{"declares another environment than its requester's", "", "", "production n" + declared("alpha"), mismatch},
		{"declares an empty environment", "", "", "production n" + declared(""), mismatch},
		{"declares, requester unknown", "", "", "unknown n" + declared("alpha"), "admit"},
	}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, fmt.Sprintf("table-%d", i))
			clients := map[string]client.Client{
				"alpha": w.airflow("alpha"), "production": w.airflow("production"), "unknown": w.as(w.jobs, "unknown"),
			}
			if row.existing != "" {
				env, line, _ := strings.Cut(row.existing, " ")
				w.setState(w.mustCreate(clients[env], line), row.state)
			}
			env, line, _ := strings.Cut(row.incoming, " ")
			// A dry run gets the same answer and leaves nothing behind.
			dry := w.pod(line)
			if got := reasonIn(clients[env].Create(t.Context(), dry, client.DryRunAll)); got != row.want {
				t.Errorf("dry run: %s, want %s", got, row.want)
			}
			_, err := w.create(clients[env], line)
			if got := reasonIn(err); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
		})
	}
}

func TestSameNameIsTheAPIServersBusiness(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "same-name")
	w.mustCreate(w.airflow("alpha"), "x")
	if _, err := w.create(w.airflow("alpha"), "x"); !apierrors.IsAlreadyExists(err) {
		t.Errorf("%v", err)
	}
}

func TestStamp(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "stamp")
	alpha := w.airflow("alpha")

	tests := map[string]struct {
		line                    string
		environment, provenance string
	}{
		"undeclared":             {"a run_id=a", "alpha", "stamped"},
		"with annotations":       {"b run_id=b @example.com/team=data", "alpha", "stamped"},
		"declared":               {"c run_id=c alpha!", "alpha", ""},
		"no task pod":            {"d run_id-", "", ""},
		"a worker":               {"e run_id=e airflow-worker=1", "", ""},
		"a stamp without label":  {"f run_id=f @solepod.io/environment=stamped", "alpha", "stamped"},
		"another one's note":     {"g run_id=g @solepod.io/environment=mine", "alpha", "stamped"},
		"generated name, mapped": {"h- run_id=h map_index=3", "alpha", "stamped"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			sent := w.pod(tc.line)
			got := w.mustCreate(alpha, tc.line)
			if got.Labels["airflow-environment"] != tc.environment || got.Annotations["solepod.io/environment"] != tc.provenance {
				t.Errorf("labels %v, annotations %v", got.Labels, got.Annotations)
			}
			// Nothing that was sent is gone or changed but solepod's own note.
			for key, value := range sent.Labels {
				if got.Labels[key] != value {
					t.Errorf("label %s: %q became %q", key, value, got.Labels[key])
				}
			}
			for key, value := range sent.Annotations {
				if key != "solepod.io/environment" && got.Annotations[key] != value {
					t.Errorf("annotation %s: %q became %q", key, value, got.Annotations[key])
				}
			}
			if n := len(got.Labels) - len(sent.Labels); n > 1 {
				t.Errorf("%d labels were added", n)
			}
		})
	}
	t.Run("requester unknown", func(t *testing.T) {
		got := w.mustCreate(w.as(w.jobs, "unknown"), "z run_id=z")
		if _, stamped := got.Labels["airflow-environment"]; stamped || got.Annotations != nil {
			t.Errorf("labels %v, annotations %v", got.Labels, got.Annotations)
		}
	})
	t.Run("an empty declaration is not overwritten", func(t *testing.T) {
		got := w.mustCreate(w.as(w.jobs, "unknown-2"), "y run_id=y airflow-environment=")
		if value, carried := got.Labels["airflow-environment"]; !carried || value != "" {
			t.Errorf("labels %v", got.Labels)
		}
	})
}

func TestInjectionOff(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: header + "injection: Off\n"})
	w := newWorld(t, "off")
	if pod := w.mustCreate(w.airflow("alpha"), "x"); pod.Labels["airflow-environment"] != "" || pod.Annotations != nil {
		t.Errorf("labels %v, annotations %v", pod.Labels, pod.Annotations)
	}
}

const header = "apiVersion: solepod.io/v1alpha1\nkind: Configuration\n"

func TestInjectionRequire(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: header + "injection: Require\n"})
	w := newWorld(t, "require")
	_, err := w.create(w.airflow("alpha"), "x")
	if got := reasonIn(err); got != "403 Forbidden EnvironmentNotDeclared" {
		t.Error(got)
	}
	if err != nil && !strings.Contains(err.Error(), "Label the namespace of its Airflow with solepod.io/declare=enabled and restart Airflow") {
		t.Error(err)
	}
	w.mustCreate(w.airflow("alpha"), "y alpha!")
	w.mustCreate(w.as(w.jobs, "unknown"), "z run_id=z")
}

func TestRequesterEnvironment(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "requester")
	label := func(object client.Object, environment string) {
		t.Helper()
		patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{"airflow-environment":%q}}}`, environment))
		if err := w.admin.Patch(t.Context(), object, patch); err != nil {
			t.Fatal(err)
		}
	}
	// The stamp follows the labels as soon as the guard's watch has seen them.
	stamped := func(c client.Client, want string) {
		t.Helper()
		fixture.Eventually(t, func() error {
			pod := w.pod("x run_id=" + want)
			err := c.Create(t.Context(), pod, client.DryRunAll)
			if got := pod.Labels["airflow-environment"]; err == nil && got != want {
				err = fmt.Errorf("stamped %q, want %q", got, want)
			}
			return err
		})
	}
	airflow := w.airflow("alpha")
	stamped(airflow, "alpha") // its namespace's

	// Two releases in one namespace: the ServiceAccount's label goes first.
	label(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "requester-alpha", Name: "airflow"}}, "beta")
	stamped(airflow, "beta")

	// A requester without an environment has that of the pod's namespace.
	unknown := w.as(w.jobs, "unknown")
	stamped(unknown, "")
	label(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.jobs}}, "gamma")
	stamped(unknown, "gamma")
	stamped(w.admin, "gamma") // not a ServiceAccount at all
	stamped(airflow, "beta")
}

func TestUpdateThatMakesATaskPod(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "update")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	w.mustCreate(alpha, "x")
	relabel := func(line, patch string) error {
		pod := w.mustCreate(production, line)
		return production.Patch(t.Context(), pod, client.RawPatch(types.MergePatchType, []byte(patch)))
	}
	run := `{"metadata":{"labels":{"run_id":"scheduled__2023-03-08T0130000000-77fa57adf"}}}`
	if got := reasonIn(relabel("hidden run_id-", run)); got != "403 Forbidden DuplicateEnvironment" {
		t.Errorf("a run added: %s", got)
	}
	if got := reasonIn(relabel("worker airflow-worker=1", `{"metadata":{"labels":{"airflow-worker":null}}}`)); got != "403 Forbidden DuplicateEnvironment" {
		t.Errorf("airflow-worker removed: %s", got)
	}
	if got := reasonIn(relabel("other run_id-", `{"metadata":{"labels":{"run_id":"free"}}}`)); got != "admit" {
		t.Errorf("a free run added: %s", got)
	}
	// What Airflow patches on its own pods, and an update of a pod that was
	// admitted before solepod came, never meets its own pod as a duplicate.
	if got := reasonIn(relabel("own run_id=own", `{"metadata":{"labels":{"already_checked":"True"}}}`)); got != "admit" {
		t.Errorf("already_checked: %s", got)
	}
}

// KubernetesJobOperator: the Job's pods carry the labels of one task, several
// at once. They come from the real Job controller.
func TestJobPods(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "job")
	three := int32(3)
	template := w.pod("unused run")
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "export"},
		Spec: batchv1.JobSpec{
			Parallelism: &three, Completions: &three,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec,
			},
		},
	}
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if err := w.admin.Create(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(job), job)
		if err == nil && job.Status.Succeeded != three {
			err = fmt.Errorf("%+v", job.Status)
		}
		return err
	})
	// And they conflict with no pod.
	w.mustCreate(w.airflow("alpha"), "x")
}

// Pods that a node runs, from Pending to their end.
func TestPodsThatRun(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "run")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.mustCreate(alpha, "x run")
	phase := func(want corev1.PodPhase) {
		t.Helper()
		fixture.Eventually(t, func() error {
			err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod)
			if err == nil && pod.Status.Phase != want {
				err = fmt.Errorf("phase %s, want %s", pod.Status.Phase, want)
			}
			return err
		})
	}
	phase(corev1.PodRunning)
	_, err := w.create(production, "y")
	if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" || !strings.Contains(err.Error(), "phase Running") {
		t.Errorf("beside a running pod: %v", err)
	}
	end := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"Succeeded"}}}`, controlplane.AnnotationEnd)
	if err := w.admin.Patch(t.Context(), pod, client.RawPatch(types.MergePatchType, end)); err != nil {
		t.Fatal(err)
	}
	phase(corev1.PodSucceeded)
	_, err = w.create(production, "y")
	if got := reasonIn(err); got != "409 Conflict LeftoverEnvironment" {
		t.Errorf("beside a finished pod: %v", err)
	}
	w.mustCreate(alpha, "z") // Airflow's retry while its own finished pod exists
}

func TestEnforcement(t *testing.T) {
	t.Run("Warn", func(t *testing.T) {
		shared.Own(t, plane, solepod.Options{Config: header + "enforcement: Warn\n"})
		w := newWorld(t, "warn")
		w.mustCreate(w.airflow("alpha"), "x")
		warnings := warningsOf(t, w)
		if len(warnings) != 1 || !strings.Contains(warnings[0], "[DuplicateEnvironment]") {
			t.Errorf("warnings %q", warnings)
		}
	})
	t.Run("Audit", func(t *testing.T) {
		shared.Own(t, plane, solepod.Options{Config: header + "enforcement: Audit\n"})
		w := newWorld(t, "audit")
		w.mustCreate(w.airflow("alpha"), "x")
		if warnings := warningsOf(t, w); len(warnings) != 0 {
			t.Errorf("warnings %q", warnings)
		}
	})
}

// warningsOf creates production's duplicate and returns the warnings with which
// it was admitted.
func warningsOf(t *testing.T, w *world) []string {
	t.Helper()
	config := w.config(w.prefix+"-production", "airflow")
	var warnings recorder
	config.WarningHandler = &warnings
	w.mustCreate(newClient(t, config), "y")
	return warnings
}

type recorder []string

func (r *recorder) HandleWarningHeader(_ int, _ string, text string) { *r = append(*r, text) }

// A pod of nearly the 3 MiB that the API server takes.
func TestLargePod(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "large")
	alpha := w.airflow("alpha")
	pod := w.pod("x")
	// Annotations are limited to 256 KiB, so the weight is in the environment;
	// etcd takes 1.5 MiB of protobuf, which a dry run never reaches.
	for i := range 28 {
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env,
			corev1.EnvVar{Name: fmt.Sprintf("V%d", i), Value: strings.Repeat("x", 100<<10)})
	}
	size, err := json.Marshal(pod)
	if err != nil || len(size) < 2_800_000 {
		t.Fatalf("%d bytes, %v", len(size), err)
	}
	if err := alpha.Create(t.Context(), pod, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("alpha", pod.Labels["airflow-environment"]); diff != "" {
		t.Error(diff)
	}
}

// The shipped selectors and matchConditions keep everything from the hooks that
// they would admit anyway.
func TestWhatTheHooksAreSpared(t *testing.T) {
	g := shared.Run(t, plane)
	w := newWorld(t, "spared")
	alpha := w.airflow("alpha")
	calls := func(path string) int {
		t.Helper()
		n, err := g.Calls(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	own := w.mustCreate(alpha, "own run_id=own")
	controller := true
	systemPod := w.pod("system")
	systemPod.Namespace = metav1.NamespaceSystem
	ownedPod := w.pod("owned")
	ownedPod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "j", UID: "u", Controller: &controller}}
	marked := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"already_checked":"True"}}}`))

	tests := []struct {
		name           string
		do             func() error
		stamped, asked bool
	}{
		{"a task pod", func() error { return alpha.Create(t.Context(), w.pod("a run_id=a")) }, true, true},
		{"a declared task pod", func() error { return alpha.Create(t.Context(), w.pod("b run_id=b alpha!")) }, false, true},
		{"a worker", func() error { return alpha.Create(t.Context(), w.pod("c run_id=c airflow-worker=1")) }, false, false},
		{"no operator's pod", func() error { return alpha.Create(t.Context(), w.pod("d kubernetes_pod_operator-")) }, false, false},
		{"a pod with a controller reference", func() error { return w.admin.Create(t.Context(), ownedPod, client.DryRunAll) }, true, false},
		{"kube-system", func() error { return w.admin.Create(t.Context(), systemPod) }, false, false},
		{"an update of a task pod", func() error { return alpha.Patch(t.Context(), own, marked) }, false, false},
		{"its status", func() error {
			own.Status.Phase = corev1.PodRunning
			return w.admin.Status().Update(t.Context(), own)
		}, false, false},
		{"its deletion", func() error { return alpha.Delete(t.Context(), own, client.GracePeriodSeconds(0)) }, false, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			stamp, guard := calls(webhook.StampPath), calls(webhook.GuardPath)
			if err := tc.do(); err != nil {
				t.Fatal(err)
			}
			if called := calls(webhook.StampPath) != stamp; called != tc.stamped {
				t.Errorf("stamp was called: %v", called)
			}
			if called := calls(webhook.GuardPath) != guard; called != tc.asked {
				t.Errorf("guard was called: %v", called)
			}
		})
	}
}
