// Package integration tests solepod as it is run: the real process, with the
// shipped manifests, called by a real kube-apiserver.
package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/incident"
)

// plane is the control plane that the package's tests share; each test has
// namespaces and a guard of its own.
var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	code := controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true, Node: true, Audit: true, ClientCertificate: true})
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

// pod reads a task pod of the incident from one line: a name, or a prefix that
// ends in "-" for generateName, then key=value labels, key- to drop one,
// @key=value annotations, and "run" to have it run by the node.
func (w *world) pod(line string) *corev1.Pod {
	words := strings.Fields(line)
	pod := incident.Pod(w.jobs, words[0])
	if strings.HasSuffix(pod.Name, "-") {
		pod.GenerateName, pod.Name = pod.Name, ""
	}
	for _, word := range words[1:] {
		key, value, set := strings.Cut(word, "=")
		switch annotation, isAnnotation := strings.CutPrefix(key, "@"); {
		case isAnnotation:
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, annotation, value)
		case set:
			pod.Labels[key] = value
		case strings.HasSuffix(word, "-"):
			delete(pod.Labels, strings.TrimSuffix(word, "-"))
		case word == "run":
			pod.Spec.NodeName = controlplane.NodeName
		default:
			w.t.Fatalf("pod %q: %q?", line, word)
		}
	}
	return pod
}

// eventually waits until a condition holds, and fails the test with the last
// error if it does not.
func eventually(t *testing.T, condition func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 20*time.Millisecond, time.Minute, true, func(context.Context) (bool, error) {
		last = condition()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%v: %v", err, last)
	}
}

// create creates a pod and returns it as the API server stored it.
func (w *world) create(c client.Client, line string) (*corev1.Pod, error) {
	pod := w.pod(line)
	return pod, c.Create(w.t.Context(), pod)
}

// mustCreate is create for pods that are to be admitted.
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
