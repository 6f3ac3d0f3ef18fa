// Package integration tests solepod as it is run: the real process, with the
// shipped manifests, called by a real kube-apiserver.
package integration

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// The tests of the package share a control plane; each has namespaces of its own.
var (
	plane *controlplane.ControlPlane
	// shared is the guard with default options.
	shared solepod.Shared
)

func TestMain(m *testing.M) {
	code := controlplane.Main(solepod.Main{M: m, Shared: &shared}, &plane, controlplane.Options{ControllerManager: true, Node: true, Audit: true, ClientCertificate: true})
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, "still running after the tests:", err)
		code = 1
	}
	os.Exit(code)
}

// world is a set of namespaces for one test: two Airflows and the namespace in
// which both run their task pods.
type world struct {
	t      *testing.T
	prefix string
	jobs   string
	admin  client.Client
}

// newWorld makes the namespaces PREFIX-alpha, PREFIX-production and
// PREFIX-jobs; the first two are labelled with their environment.
func newWorld(t *testing.T, prefix string) *world {
	t.Helper()
	w := &world{t: t, prefix: prefix, jobs: prefix + "-jobs", admin: plane.Admin}
	for _, name := range []string{"alpha", "production", "jobs"} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: prefix + "-" + name}}
		if name != "jobs" {
			namespace.Labels = map[string]string{"airflow-environment": name}
		}
		if err := w.admin.Create(t.Context(), namespace); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func newClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// airflow is a client with the token of an environment's Airflow.
func (w *world) airflow(environment string) client.Client {
	w.t.Helper()
	return w.as(w.prefix+"-"+environment, "airflow")
}

// as is a client with the token of a ServiceAccount that may do with pods in
// the jobs namespace what Airflow does.
func (w *world) as(namespace, name string) client.Client {
	w.t.Helper()
	return newClient(w.t, w.config(namespace, name))
}

// config is what as authenticates with.
func (w *world) config(namespace, name string) *rest.Config {
	w.t.Helper()
	config, err := plane.Airflow(w.t.Context(), namespace, name, w.jobs)
	if err != nil {
		w.t.Fatal(err)
	}
	return config
}

// pod returns a task pod in the jobs namespace from a line of package fixture.
func (w *world) pod(line string) *corev1.Pod { return fixture.Pod(w.jobs, line) }

// create creates a pod and returns it as the API server stored it.
func (w *world) create(c client.Client, line string) (*corev1.Pod, error) {
	pod := w.pod(line)
	return pod, c.Create(w.t.Context(), pod)
}

// mustCreate is create for pods that must be admitted.
func (w *world) mustCreate(c client.Client, line string) *corev1.Pod {
	w.t.Helper()
	pod, err := w.create(c, line)
	if err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	return pod
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
