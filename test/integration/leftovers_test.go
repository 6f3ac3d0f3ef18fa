package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
)

// report is the report of audit on the namespace of the pods.
func (w *world) report(ctx context.Context, options audit.Options) audit.Report {
	w.t.Helper()
	settings := config.Default()
	cluster, err := audit.Source{Client: w.admin, Namespace: "solepod-system", Configuration: settings}.Collect(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	options.Settings, options.Namespaces, options.Now = settings.Policy(), []string{w.jobs}, time.Now().Add(2*time.Minute)
	return audit.Scan(cluster, options)
}

// The base container has ended, and a sidecar runs on: the task is over.
func TestBaseContainerEnded(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "over")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.pod("x")
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "istio"})
	if err := alpha.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := w.create(production, "live"); reasonIn(err) != "403 Forbidden DuplicateEnvironment" {
		t.Errorf("while it runs: %v", err)
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "base", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.Now()}}},
		{Name: "istio-proxy", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}},
	}
	if err := w.admin.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	_, err := w.create(production, "n")
	if got := reasonIn(err); got != "409 Conflict LeftoverEnvironment" || !strings.Contains(err.Error(), "ago and istio-proxy runs on)") {
		t.Errorf("%v", err)
	}
	r := w.report(t.Context(), audit.Options{})
	if len(r.Leftovers) != 1 || r.Leftovers[0].Reason != "BaseContainerEnded" || r.Leftovers[0].Safe || !strings.HasSuffix(r.Leftovers[0].Detail, "ago, and istio-proxy runs on") {
		t.Errorf("%+v", r.Leftovers)
	}
	if r := w.report(t.Context(), audit.Options{AbandonedAfter: time.Minute}); len(r.Reclaimable()) != 1 {
		t.Errorf("%+v", r.Leftovers)
	}
	w.mustCreate(alpha, "again") // its own Airflow goes on
}

// A finalizer keeps a deleted pod. To mark it as checked is a cure that works.
func TestStuckTerminating(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "stuck")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.pod("x")
	pod.Finalizers = []string{"example.com/keep"}
	if err := alpha.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.admin.Patch(context.Background(), pod, merge(`{"metadata":{"finalizers":null}}`)); err != nil {
			t.Error(err)
		}
	})
	if err := alpha.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	_, err := w.create(production, "n")
	if got := reasonIn(err); got != "409 Conflict LeftoverEnvironment" || !strings.Contains(err.Error(), "being deleted, with the finalizers example.com/keep)") ||
		!strings.Contains(err.Error(), "Label that pod already_checked=True") {
		t.Errorf("%v", err)
	}
	r := w.report(t.Context(), audit.Options{})
	if len(r.Leftovers) != 1 || r.Leftovers[0].Reason != "StuckTerminating" || !strings.Contains(r.Leftovers[0].Detail, "its finalizers: example.com/keep") {
		t.Errorf("%+v", r.Leftovers)
	}
	if err := alpha.Patch(t.Context(), pod, merge(`{"metadata":{"labels":{"already_checked":"True"}}}`)); err != nil {
		t.Fatal(err)
	}
	w.mustCreate(production, "n")
}

// A job of production that cleans up deletes finished pods of alpha, too. That fires no
// alert.
func TestForeignCleanup(t *testing.T) {
	g := shared.Run(t, plane)
	w := newWorld(t, "reaper")
	pod := w.mustCreate(w.airflow("alpha"), "x")
	pod.Status.Phase = corev1.PodSucceeded
	if err := w.admin.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	err := w.airflow("production").Delete(t.Context(), pod)
	if got := reasonIn(err); got != "403 Forbidden ForeignCleanup" || !strings.Contains(err.Error(), "let it select pods with the label airflow-environment=production") {
		t.Errorf("%v", err)
	}
	metrics, err := g.Metrics(t.Context())
	if err != nil || !strings.Contains(string(metrics), `reason="ForeignCleanup"`) || strings.Contains(string(metrics), `solepod_foreign_access_total{from="production",operation="DELETE",to="alpha",verdict="denied"}`) {
		t.Errorf("%v\n%s", err, metrics)
	}
}

// The namespace of alpha's Airflow is gone, and its pod runs on.
func TestEnvironmentIsGone(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "gone")
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.prefix + "-alpha"}}
	alpha := w.airflow("alpha")
	if err := w.admin.Patch(t.Context(), namespace, merge(`{"metadata":{"labels":{"airflow-environment":"dev-42"}}}`)); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		_, err := w.create(alpha, "x dev-42?")
		return err
	})
	if err := w.admin.Patch(t.Context(), namespace, merge(`{"metadata":{"labels":{"airflow-environment":null}}}`)); err != nil {
		t.Fatal(err)
	}
	want := "No namespace, no ServiceAccount and no configuration names environment dev-42. If no Airflow waits for that pod, remove it: solepod reclaim --yes gone-jobs/x [DuplicateEnvironment]"
	fixture.Eventually(t, func() error { // the watch has seen it
		_, err := w.create(w.airflow("production"), "n")
		if err == nil || reasonIn(err) != "403 Forbidden DuplicateEnvironment" {
			t.Fatalf("%v", err)
		}
		if strings.Contains(err.Error(), want) {
			return nil
		}
		return err
	})
	if r := w.report(t.Context(), audit.Options{AbandonedAfter: time.Second}); len(r.Reclaimable()) != 1 {
		t.Errorf("%+v", r.Orphans)
	}
}

// Creates that the API server refuses for their name fill no claim, and keep no pod out.
func TestTakenNames(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "names")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.mustCreate(alpha, "fixed")
	for range 80 {
		if _, err := w.create(alpha, "fixed"); !apierrors.IsAlreadyExists(err) || reasonIn(err) != "409 AlreadyExists NameTaken" {
			t.Fatalf("%v", err)
		}
		_, err := w.create(production, "fixed")
		if reasonIn(err) != "403 Forbidden DuplicateEnvironment" || !strings.Contains(err.Error(), "The name is taken: leave random_name_suffix") {
			t.Fatalf("%v", err)
		}
	}
	w.mustCreate(alpha, "other try_number=2")
	if holders := w.holders(pod); holders != 2 {
		t.Errorf("%d holders", holders)
	}
	for _, name := range []string{"fixed", "other"} {
		if err := alpha.Delete(t.Context(), w.pod(name), client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	w.mustCreate(alpha, "fixed") // without a wait for what was refused

	// A pod that is no task has the name.
	other := w.pod("service kubernetes_pod_operator-")
	if err := w.admin.Create(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for range 80 {
		if _, err := w.create(alpha, "service run_id=service"); !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%v", err)
		}
	}
	w.mustCreate(alpha, "another try_number=2 run_id=service")
}

// holders is the number of holders of the claim of a pod.
func (w *world) holders(pod *corev1.Pod) int {
	w.t.Helper()
	id, _ := taskpod.FromMeta(pod, "").Identity()
	var lease coordinationv1.Lease
	if err := w.admin.Get(w.t.Context(), client.ObjectKey{Namespace: "solepod-system", Name: claim.Name(id)}, &lease); err != nil {
		w.t.Fatal(err)
	}
	_, holders, _ := claim.Inspect(&lease)
	return len(holders)
}

// A pod becomes a task pod by an update of a subresource that can change labels.
func TestLabelsBySubresource(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "subresource")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	w.mustCreate(alpha, "x")
	run := `{"metadata":{"labels":{"run_id":"` + w.pod("x").Labels["run_id"] + `"}}}`
	for _, subresource := range []string{"", "status"} {
		pod := w.mustCreate(production, "n"+subresource+" run_id-")
		err := production.Patch(t.Context(), pod, merge(run))
		if subresource != "" {
			// An administrator is of no environment, and may update the status.
			err = w.admin.SubResource(subresource).Patch(t.Context(), pod, merge(run))
		}
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			t.Errorf("by %q: %v", subresource, err)
		}
	}
	resized := w.mustCreate(production, "resized run_id-")
	if err := w.admin.SubResource("resize").Patch(t.Context(), resized, merge(run)); err != nil || resized.Labels["run_id"] != "" {
		t.Errorf("a resize changes labels: %v, %v", resized.Labels, err)
	}
	// A scheduler can add labels by a binding, which no hook of solepod reviews.
	pod := w.mustCreate(production, "bound run_id-")
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"run_id": w.pod("x").Labels["run_id"]}},
		Target:     corev1.ObjectReference{Kind: "Node", Name: "node"},
	}
	if err := w.admin.SubResource("binding").Create(t.Context(), pod, binding); err != nil {
		t.Fatal(err)
	}
	if r := w.report(t.Context(), audit.Options{}); len(r.Collisions) != 1 {
		t.Errorf("%+v", r)
	}
}

// An Airflow gives its pod a controller reference, as some do for garbage collection. That
// hides no pod. What controllers, operators and syncers create is spared.
func TestControllerReference(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "owner")
	// The garbage collector deletes the pods of owners that do not exist.
	zero := appsv1.StatefulSetSpec{
		Replicas: ptr.To(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: w.pod("x").Spec},
	}
	zero.Template.Spec.RestartPolicy = corev1.RestartPolicyAlways
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "owner"}, Spec: zero}
	driver := w.pod("driver kubernetes_pod_operator-")
	for _, object := range []client.Object{set, driver} {
		if err := w.admin.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	owned := func(name, line, kind string) *corev1.Pod {
		pod := w.pod(name + " " + line)
		owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: set.Name, UID: set.UID, Controller: ptr.To(true)}
		if kind == "Pod" {
			owner = metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: driver.Name, UID: driver.UID, Controller: ptr.To(true)}
		}
		pod.OwnerReferences = []metav1.OwnerReference{owner}
		return pod
	}
	alpha, production, operator := w.airflow("alpha"), w.airflow("production"), w.as(w.jobs, "operator")
	for run, pods := range map[string][2]*corev1.Pod{
		"first":    {owned("a1", "run_id=first", "StatefulSet"), w.pod("p1 run_id=first")},
		"second":   {w.pod("a2 run_id=second"), owned("p2", "run_id=second", "StatefulSet")},
		"both":     {owned("a3", "run_id=both", "StatefulSet"), owned("p3", "run_id=both", "Pod")},
		"labelled": {owned("a4", "run_id=labelled alpha?", "StatefulSet"), w.pod("p4 run_id=labelled production!")},
	} {
		if err := alpha.Create(t.Context(), pods[0]); err != nil {
			t.Fatal(err)
		}
		if got := reasonIn(production.Create(t.Context(), pods[1])); got != "403 Forbidden DuplicateEnvironment" {
			t.Errorf("%s: %s", run, got)
		}
	}
	// The pods of an operator, of Spark's driver and of two virtual namespaces.
	for name, c := range map[string]client.Client{"operator": operator, "spark": alpha, "virtual": alpha} {
		for i := range 2 {
			line := map[string]string{
				"operator": "", "spark": "spark-role=executor", "virtual": fmt.Sprintf("vcluster.loft.sh/managed-by=v vcluster.loft.sh/namespace=%d", i),
			}[name]
			pod := owned(fmt.Sprintf("%s-%d", name, i), "run_id="+name+" "+line, "Pod")
			if err := c.Create(t.Context(), pod); err != nil || pod.Annotations != nil {
				t.Errorf("%s: %v, %v", name, pod.Annotations, err)
			}
		}
	}
	// No Airflow gives a pod a controller, or takes it away.
	plain, spared := w.pod("plain run_id=changes"), owned("spared", "run_id=changes spark-role=executor", "Pod")
	for _, pod := range []*corev1.Pod{plain, spared} {
		if err := alpha.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	for pod, patch := range map[*corev1.Pod]string{
		plain:  fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"driver","uid":%q,"controller":true}]}}`, driver.UID),
		spared: `{"metadata":{"ownerReferences":null}}`,
	} {
		if got := reasonIn(alpha.Patch(t.Context(), pod, merge(patch))); got != "403 Forbidden IdentityChanged" {
			t.Errorf("%s: %s", patch, got)
		}
	}
}
