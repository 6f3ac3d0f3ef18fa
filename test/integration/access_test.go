package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// connect requests an exec in a pod. No process runs there, so an admitted request fails
// later, on the way to the node.
func connect(ctx context.Context, config *rest.Config, pod *corev1.Pod) error {
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	return clients.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).
		SubResource("exec").Param("container", "base").Param("command", "true").Param("stdout", "true").Do(ctx).Error()
}

func merge(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }

// TestAccessTable walks the decision table on what is done to existing task
// pods through the API server.
func TestAccessTable(t *testing.T) {
	shared.Run(t, plane)
	const (
		foreign = "403 Forbidden ForeignEnvironment"
		changed = "403 Forbidden IdentityChanged"
	)
	patch := func(body string) func(*world, client.Client, *corev1.Pod) error {
		return func(w *world, c client.Client, pod *corev1.Pod) error {
			return c.Patch(w.t.Context(), pod, merge(body))
		}
	}
	label := func(key, value string) func(*world, client.Client, *corev1.Pod) error {
		return patch(fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, key, value))
	}
	remove := func(w *world, c client.Client, pod *corev1.Pod) error { return c.Delete(w.t.Context(), pod) }
	all := func(w *world, c client.Client, _ *corev1.Pod) error {
		return c.DeleteAllOf(w.t.Context(), &corev1.Pod{}, client.InNamespace(w.jobs))
	}
	rows := []struct {
		name string
		pod  string // whose, and the pod
		who  string
		do   func(*world, client.Client, *corev1.Pod) error
		want string
	}{
		{"own delete", "alpha x", "alpha", remove, "admit"},
		{"foreign delete, stamped", "alpha x", "production", remove, foreign},
		{"foreign delete, declared", "alpha x alpha!", "production", remove, foreign},
		{"foreign delete of a collection", "alpha x", "production", all, foreign},
		{"own delete of a collection", "alpha x", "alpha", all, "admit"},
		{"an administrator's delete", "alpha x", "admin", remove, "admit"},
		{"delete by one without an environment", "alpha x", "unknown", remove, "admit"},
		{"delete of a pod without an environment", "unknown x", "production", remove, "admit"},
		{"delete of a pod that is no task's", "alpha x run_id- alpha!", "production", remove, "admit"},
		{"foreign already_checked", "alpha x", "production", label("already_checked", `"True"`), foreign},
		{"own already_checked", "alpha x", "alpha", label("already_checked", `"True"`), "admit"},
		{"own already_checked taken back", "alpha x already_checked=True", "alpha", label("already_checked", "null"), changed},
		{"an administrator takes it back", "alpha x already_checked=True", "admin", label("already_checked", "null"), "admit"},
		{"another DAG", "alpha x", "alpha", label("dag_id", `"other"`), changed},
		{"another task", "alpha x", "alpha", label("task_id", `"other"`), changed},
		{"another run", "alpha x", "alpha", label("run_id", `"other"`), changed},
		{"a map index", "alpha x", "alpha", label("map_index", `"1"`), changed},
		{"another environment", "alpha x", "alpha", label("airflow-environment", `"production"`), changed},
		{"no environment", "alpha x", "alpha", label("airflow-environment", "null"), changed},
		{"a stamp passed off as declared", "alpha x", "alpha", patch(`{"metadata":{"annotations":{"solepod.io/environment":null}}}`), changed},
		{"no task pod any more", "alpha x", "alpha", label("kubernetes_pod_operator", "null"), changed},
		{"hidden as a worker", "alpha x", "alpha", label("airflow-worker", `"1"`), changed},
		{"any other label", "alpha x", "alpha", label("example.com/team", `"data"`), "admit"},
		{"labels through the status", "alpha x", "production", func(w *world, c client.Client, pod *corev1.Pod) error {
			return c.Status().Patch(w.t.Context(), pod, merge(`{"metadata":{"labels":{"run_id":"other"}}}`))
		}, foreign},
		{"foreign resize", "alpha x", "production", func(w *world, c client.Client, pod *corev1.Pod) error {
			return c.SubResource("resize").Patch(w.t.Context(), pod, merge(`{}`))
		}, foreign},
		{"foreign ephemeral container", "alpha x", "production", func(w *world, c client.Client, pod *corev1.Pod) error {
			return c.SubResource("ephemeralcontainers").Patch(w.t.Context(), pod, merge(`{"spec":{"ephemeralContainers":[{"name":"e","image":"e"}]}}`))
		}, foreign},
		{"foreign exec", "alpha x", "production", func(w *world, _ client.Client, pod *corev1.Pod) error {
			return connect(w.t.Context(), w.config(w.prefix+"-production", "airflow"), pod)
		}, foreign},
	}
	for i, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, fmt.Sprintf("access-%d", i))
			clients := map[string]client.Client{
				"alpha": w.airflow("alpha"), "production": w.airflow("production"), "unknown": w.as(w.jobs, "unknown"), "admin": w.admin,
			}
			w.grant("alpha", "pods", "deletecollection")
			w.grant("production", "pods", "deletecollection")
			for _, resource := range []string{"pods/status", "pods/resize", "pods/ephemeralcontainers"} {
				w.grant("production", resource, "patch")
			}
			owner, line, _ := strings.Cut(row.pod, " ")
			pod := w.mustCreate(clients[owner], line)
			if got := reasonIn(row.do(w, clients[row.who], pod.DeepCopy())); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
			err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod)
			if row.want != "admit" && err != nil {
				t.Errorf("after a denial: %v", err)
			}
		})
	}
}

// grant lets an environment's Airflow do more than Airflow's chart does.
func (w *world) grant(environment, resource, verb string) {
	w.t.Helper()
	name := environment + "-" + verb + "-" + strings.ReplaceAll(resource, "/", "-")
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{resource}, Verbs: []string{verb}}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: w.prefix + "-" + environment, Name: "airflow"}},
	}
	for _, object := range []client.Object{role, binding} {
		if err := w.admin.Create(w.t.Context(), object); err != nil {
			w.t.Fatal(err)
		}
	}
	user := serviceaccount.MakeUsername(binding.Subjects[0].Namespace, binding.Subjects[0].Name)
	if err := plane.WaitAllowed(w.t.Context(), user, w.jobs, verb, resource); err != nil {
		w.t.Fatal(err)
	}
}

// An exec without an environment or of its own environment passes the hook, and fails
// at the node.
func TestExecIsPassedOn(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "exec")
	pod := w.mustCreate(w.airflow("alpha"), "x")
	for name, config := range map[string]*rest.Config{"own": w.config("exec-alpha", "airflow"), "admin": plane.Config} {
		if err := connect(t.Context(), config, pod); err == nil || !strings.Contains(err.Error(), "pod x does not have a host assigned") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForeignMessage(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "foreign")
	pod := w.mustCreate(w.airflow("alpha"), "export-action-log-4devg7t1")
	err := w.airflow("production").Delete(t.Context(), pod)
	for _, want := range []string{
		`admission webhook "access.solepod.io" denied the request: solepod: environment production may not delete a pod of environment alpha. `,
		"Pod: foreign-jobs/export-action-log-4devg7t1, environment alpha (stamped, not declared), phase Pending, try 1, age ",
		"Requested by system:serviceaccount:foreign-production:airflow, environment production. ",
		"label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow, then clear the task",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks\n%s", err, want)
		}
	}
}

func TestForeignAccessSettings(t *testing.T) {
	for settings, audited := range map[string]bool{
		"foreignAccess: Audit": true, "foreignAccess: Off": false, "enforcement: Audit": true,
	} {
		t.Run(settings, func(t *testing.T) {
			g := shared.Own(t, plane, solepod.Options{Config: header + settings + "\n"})
			w := newWorld(t, "foreign-"+strings.ToLower(strings.ReplaceAll(settings, ": ", "-")))
			pod := w.mustCreate(w.airflow("alpha"), "x")
			if err := w.airflow("production").Delete(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(read(t, g.Log), "reason=ForeignEnvironment"); got != audited {
				t.Errorf("in the log: %v", got)
			}
		})
	}
}

// accessCalls is how often the API server has called the hook on what is done
// to existing pods, by its own count.
func accessCalls(t *testing.T) int {
	t.Helper()
	calls, err := plane.Counted(t.Context(), "apiserver_admission_webhook_request_total", map[string]string{"name": "access.solepod.io"})
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// Neither kubelets nor controllers ever wait for solepod: pods run and end, and
// a namespace with 100 task pods goes, without one call.
func TestTheSystemIsNotAsked(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "system")
	alpha := w.airflow("alpha")
	before := accessCalls(t)
	probe := w.mustCreate(alpha, "probe run_id=probe")
	if err := alpha.Delete(t.Context(), probe); err != nil {
		t.Fatal(err)
	}
	if calls := accessCalls(t) - before; calls == 0 {
		t.Fatal("an Airflow's delete did not call the hook")
	}
	before = accessCalls(t)
	for i := range 100 {
		w.mustCreate(alpha, fmt.Sprintf("x-%d run_id=%d", i, i))
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.jobs}}
	if err := w.admin.Delete(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(namespace), namespace)
		if err == nil {
			return fmt.Errorf("namespace %s is still there", namespace.Name)
		}
		return client.IgnoreNotFound(err)
	})
	if calls := accessCalls(t) - before; calls != 0 {
		t.Errorf("the hook was called %d times", calls)
	}
}

// Access fails open: no pod outlives solepod because of it.
func TestAccessFailsOpen(t *testing.T) {
	g := shared.Own(t, plane, solepod.Options{})
	w := newWorld(t, "open")
	pod := w.mustCreate(w.airflow("alpha"), "x")
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.airflow("production").Delete(t.Context(), pod); err != nil {
		t.Error(err)
	}
}
