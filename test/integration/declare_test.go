package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/webhook"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// airflowNamespace makes a namespace of an Airflow that opts in.
func airflowNamespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if err := plane.Admin.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	// The ServiceAccount controller creates it a moment later.
	fixture.Eventually(t, func() error {
		return plane.Admin.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "default"}, &corev1.ServiceAccount{})
	})
}

func scheduler(namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"component": "scheduler"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "scheduler", Image: "apache/airflow:2.10.5", Args: []string{"bash", "-c", "exec airflow scheduler"}},
			{Name: "scheduler-log-groomer", Image: "apache/airflow:2.10.5", Args: []string{"bash", "/clean-logs"}},
		}},
	}
	if change != nil {
		change(pod)
	}
	return pod
}

// mounted are the paths at which the containers of a pod have the file.
func mounted(pod *corev1.Pod) []string {
	var out []string
	for _, c := range pod.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if m.Name == "solepod-declare" && m.SubPath == "solepod_declare.py" && m.ReadOnly {
				out = append(out, c.Name+" "+m.MountPath)
			}
		}
	}
	return out
}

// Pods of Airflow get the file with their environment, in namespaces that opt in.
func TestDeclare(t *testing.T) {
	g := shared.Run(t, plane)
	opted := map[string]string{"airflow-environment": "alpha", "solepod.io/declare": "enabled"}
	airflowNamespace(t, "declare-alpha", opted)
	airflowNamespace(t, "declare-off", map[string]string{"airflow-environment": "alpha"})
	airflowNamespace(t, "declare-nobody", map[string]string{"solepod.io/declare": "enabled"})
	for name, account := range map[string]string{"beta": "beta", "triggerer": ""} {
		labels := map[string]string{}
		if account != "" {
			labels["airflow-environment"] = account
		}
		if err := plane.Admin.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "declare-alpha", Name: name, Labels: labels}}); err != nil {
			t.Fatal(err)
		}
	}
	const at = "scheduler /opt/airflow/plugins/solepod_declare.py"
	for name, tc := range map[string]struct {
		pod               *corev1.Pod
		want, environment string
	}{
		"plain":           {scheduler("declare-alpha", "plain", nil), at, "alpha"},
		"annotated":       {scheduler("declare-alpha", "annotated", func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} }), at, "alpha"},
		"an account":      {scheduler("declare-alpha", "account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "beta" }), at, "beta"},
		"another account": {scheduler("declare-alpha", "triggerer", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "triggerer" }), at, "alpha"},
		"a home": {scheduler("declare-alpha", "home", func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AIRFLOW_HOME", Value: "/srv"}}
		}), "scheduler /srv/plugins/solepod_declare.py", "alpha"},
		"Astronomer's worker": {scheduler("declare-alpha", "astronomer", func(p *corev1.Pod) { p.Labels["kubernetes_pod_operator"] = "False" }), at, "alpha"},
		"opted out":           {scheduler("declare-alpha", "out", func(p *corev1.Pod) { p.Labels["solepod.io/declare"] = "disabled" }), "", ""},
		"not opted in":        {scheduler("declare-off", "plain", nil), "", ""},
		"no environment":      {scheduler("declare-nobody", "plain", nil), "", ""},
		"a plugins volume":    {scheduler("declare-alpha", "volume", mountOn("/opt/airflow/plugins")), "scheduler /opt/airflow/config/solepod_declare.py", "alpha"},
		"a home volume":       {scheduler("declare-alpha", "volumes", mountOn("/opt/airflow")), "", ""},
		"no Airflow":          {scheduler("declare-alpha", "redis", func(p *corev1.Pod) { p.Spec.Containers = []corev1.Container{{Name: "redis", Image: "redis"}} }), "", ""},
		"labelled as a pod":   {fixture.Pod("declare-alpha", "task alpha?"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if err := plane.Admin.Create(t.Context(), tc.pod); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(mounted(tc.pod), ", "); got != tc.want {
				t.Errorf("mounted at %q, want %q", got, tc.want)
			}
			source := tc.pod.Annotations[declare.Annotation]
			if tc.environment == "" && source != "" || tc.environment != "" && !strings.Contains(source, fmt.Sprintf("\nENVIRONMENT = %q\n", tc.environment)) {
				t.Errorf("the file is\n%s", source)
			}
		})
	}
	for namespace, note := range map[string]string{
		"declare-nobody": "pod plain: neither its ServiceAccount default nor namespace declare-nobody has the label airflow-environment",
		"declare-alpha":  "pod volumes: container scheduler: volume own is mounted on the plugins folder /opt/airflow/plugins",
	} {
		fixture.Eventually(t, func() error {
			var list eventsv1.EventList
			if err := plane.Admin.List(t.Context(), &list); err != nil {
				return err
			}
			for _, e := range list.Items {
				if e.Regarding.Kind == "Namespace" && e.Regarding.Name == namespace && e.Reason == "NotDeclared" && strings.Contains(e.Note, note) {
					return nil
				}
			}
			return fmt.Errorf("no event at namespace %s: %s", namespace, note)
		})
	}
	t.Run("calls", func(t *testing.T) { costsNothingElsewhere(t, g) })
	t.Run("the annotation is changed", annotationStays)
}

func mountOn(folder string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: folder}}
	}
}

// The API server does not call the hook for task pods, for pods that opt out and
// in other namespaces.
func costsNothingElsewhere(t *testing.T, g *solepod.Process) {
	before, err := g.Calls(t.Context(), webhook.DeclarePath)
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range []*corev1.Pod{
		fixture.Pod("declare-alpha", "cost alpha? task_id=cost"),
		scheduler("declare-off", "cost", nil),
		scheduler("declare-alpha", "cost-out", func(p *corev1.Pod) { p.Labels["solepod.io/declare"] = "disabled" }),
	} {
		if err := plane.Admin.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	after, err := g.Calls(t.Context(), webhook.DeclarePath)
	if err != nil || before == 0 || after != before {
		t.Errorf("%d calls before, %d after, %v", before, after, err)
	}
}

// The file of a running pod cannot be changed.
func annotationStays(t *testing.T) {
	for name, change := range map[string]func(map[string]string){
		"replaced": func(a map[string]string) { a[declare.Annotation] = "import os" },
		"removed":  func(a map[string]string) { delete(a, declare.Annotation) },
		"added":    func(a map[string]string) { a["solepod.io/declare.entry-points"] = "[airflow.plugins]" },
		"other":    func(a map[string]string) { a["other"] = "x" },
	} {
		var pod corev1.Pod
		if err := plane.Admin.Get(t.Context(), client.ObjectKey{Namespace: "declare-alpha", Name: "plain"}, &pod); err != nil {
			t.Fatal(err)
		}
		change(pod.Annotations)
		for resource, update := range map[string]func() error{
			"pods":        func() error { return plane.Admin.Update(t.Context(), &pod) },
			"pods/status": func() error { return plane.Admin.Status().Update(t.Context(), &pod) },
		} {
			err := update()
			if denied := apierrors.IsForbidden(err) && strings.Contains(err.Error(), "the annotations solepod.io/declare.* cannot be changed"); denied == (name == "other") || !denied && err != nil && !apierrors.IsConflict(err) {
				t.Errorf("%s by %s: %v", name, resource, err)
			}
		}
	}
}
