// Package solepod runs the real solepod, as a process of its own and with the
// shipped manifests, against a control plane of package controlplane.
package solepod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/webhook"
	"github.com/solepod/solepod/test/chart"
	"github.com/solepod/solepod/test/controlplane"
)

// Namespace and account are the shipped ones.
const (
	Namespace = chart.Namespace
	account   = "solepod"
)

// Options for a guard.
type Options struct {
	// Config is the content of the configuration file; empty for none.
	Config string
	// Identity is who solepod authenticates as; nil for its own ServiceAccount.
	Identity *rest.Config
	// Replicas is how many processes there are; 0 for one. Several are called
	// in turn, one after another for each review.
	Replicas int
	// Values are of the chart, key=value, for what its defaults do not give:
	// the right to supersede pods is one.
	Values []string
	// Direct connects the replicas to the API server directly. DropAPI then cannot be
	// used, and no proxy adds latency.
	Direct bool
	// Faults has the replicas call the API server through a proxy, so that
	// Break can be used.
	Faults bool
	// Binaries are what the replicas run, each the next one in turn; nil for
	// solepod as it is built from here.
	Binaries []string
	// Args are further ones of solepod serve.
	Args []string
}

// Process is a running solepod of one or more replicas, installed in the control plane.
type Process struct {
	// Replica is the first replica, and normally the only one.
	*Replica
	Replicas []*Replica
	// CertDir is the folder of tls.crt and tls.key.
	CertDir string
	// CA verifies the serving certificate, PEM.
	CA []byte

	plane    *controlplane.ControlPlane
	webhooks *envtest.WebhookInstallOptions
	balancer *balancer // nil for one replica
	dir      string
}

// Start applies the shipped manifests except for the webhook configurations,
// builds solepod and runs it as its own ServiceAccount with its own RBAC.
// Install waits until it is ready and makes the API server call it.
func Start(ctx context.Context, plane *controlplane.ControlPlane, o Options) (_ *Process, err error) {
	root, err := controlplane.Repository(ctx)
	if err != nil {
		return nil, err
	}
	manifests := filepath.Join(root, "manifests", "install.yaml")
	if len(o.Values) > 0 {
		rendered, err := chart.Render(ctx, o.Values...)
		if err != nil {
			return nil, err
		}
		manifests = filepath.Join(plane.Dir, "rendered.yaml")
		if err := os.WriteFile(manifests, rendered, 0o600); err != nil {
			return nil, err
		}
	}
	if err := apply(ctx, plane, manifests); err != nil {
		return nil, fmt.Errorf("applying %s: %w", manifests, err)
	}
	g := &Process{plane: plane, webhooks: &envtest.WebhookInstallOptions{Paths: []string{manifests}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Stop())
		}
	}()
	address, err := controlplane.FreeAddress(ctx, "127.0.0.1")
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	g.webhooks.LocalServingHost = host
	if g.webhooks.LocalServingPort, err = strconv.Atoi(port); err != nil {
		return nil, err
	}
	if err := g.webhooks.PrepWithoutInstalling(); err != nil {
		return nil, err
	}
	g.CertDir, g.CA = g.webhooks.LocalServingCertDir, g.webhooks.LocalServingCAData
	if g.dir, err = os.MkdirTemp("", "solepod-guard-"); err != nil {
		return nil, err
	}

	if len(o.Binaries) == 0 {
		binary, err := Binary(ctx)
		if err != nil {
			return nil, err
		}
		o.Binaries = []string{binary}
	}
	if o.Identity == nil {
		if o.Identity, err = plane.ServiceAccount(ctx, Namespace, account); err != nil {
			return nil, err
		}
	}
	for i := range max(o.Replicas, 1) {
		own := address
		if o.Replicas > 1 { // the balancer has the common address
			if own, err = controlplane.FreeAddress(ctx, "127.0.0.1"); err != nil {
				return nil, err
			}
		}
		dir := filepath.Join(g.dir, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		replica, err := g.newReplica(ctx, o.Binaries[i%len(o.Binaries)], dir, own, o)
		if replica != nil {
			g.Replicas = append(g.Replicas, replica)
		}
		if err == nil {
			err = replica.Start()
		}
		if err != nil {
			return nil, err
		}
	}
	g.Replica = g.Replicas[0]
	if o.Replicas > 1 {
		g.balancer, err = newBalancer(ctx, address, g.CertDir, g.CA, g.Replicas)
	}
	return g, err
}

// Binary builds solepod, with the race detector if the test has it, and returns
// its path. The linker runs only if the file is not up to date.
func Binary(ctx context.Context) (string, error) {
	root, err := controlplane.Repository(ctx)
	if err != nil {
		return "", err
	}
	if err := watchSources(root); err != nil {
		return "", err
	}
	binary := filepath.Join(root, "bin", "test", "solepod")
	args := []string{"build", "-ldflags=-X main.version=" + chart.Version}
	if race {
		binary += "-race"
		args = append(args, "-race")
	}
	build := exec.CommandContext(ctx, "go", append(args, "-o", binary, "./cmd/solepod")...)
	build.Dir = root
	unlock, err := lock(filepath.Dir(binary))
	if err != nil {
		return "", err
	}
	out, err := build.CombinedOutput()
	if err := errors.Join(err, unlock()); err != nil {
		return "", fmt.Errorf("building solepod: %w\n%s", err, out)
	}
	return binary, nil
}

// lock waits until no other process builds into a folder, which it creates.
func lock(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file.Close, nil
}

// watchSources opens each file that solepod is built from, so that go test does not
// reuse a cached result when one of them has changed. (go test tracks the packages that
// a test imports, and the files that it opens.)
func watchSources(root string) error {
	for _, dir := range []string{"cmd", "pkg", "certs"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err == nil && !strings.HasSuffix(path, "_test.go") {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// dependOnVersion makes the result of a test depend on the version of the
// control plane. go test takes note of such things only while tests run, and
// the control plane is started before.
func dependOnVersion(t testing.TB) {
	t.Helper()
	if _, err := controlplane.Build(t.Context(), io.Discard, controlplane.KubeAPIServer); err != nil {
		t.Fatal(err)
	}
}

// Run starts a guard for a test, installs it, and stops it when the test has
// ended. The log of a failed test's guard is in the test's log. No other guard
// may be installed.
func Run(t testing.TB, plane *controlplane.ControlPlane, o Options) *Process {
	t.Helper()
	dependOnVersion(t)
	installed := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := plane.Admin.Get(t.Context(), client.ObjectKey{Name: "solepod"}, installed); !apierrors.IsNotFound(err) {
		t.Fatalf("another guard is installed, which Shared.Own would stop: %v", err)
	}
	g, err := Start(t.Context(), plane, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i, replica := range g.Replicas {
			if t.Failed() {
				log, err := os.ReadFile(replica.Log)
				t.Logf("the log of replica %d (%v):\n%s", i, err, log)
			}
		}
		if err := errors.Join(g.Uninstall(context.Background()), g.Stop()); err != nil {
			t.Errorf("stopping solepod: %v", err)
		}
	})
	if err := g.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

// Served is how many reviews each replica has been sent.
func (g *Process) Served() []int64 {
	served := make([]int64, len(g.Replicas))
	for i := range served {
		served[i] = g.balancer.served[i].Load()
	}
	return served
}

// Events are those of a reason at a pod.
func Events(ctx context.Context, c client.Client, pod *corev1.Pod, reason string) ([]eventsv1.Event, error) {
	var list eventsv1.EventList
	if err := c.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(e eventsv1.Event) bool {
		return e.Regarding.UID != pod.UID || e.Reason != reason
	}), nil
}

// Calls is how many reviews the hook at a path has answered.
func (g *Process) Calls(ctx context.Context, path string) (int, error) {
	sum := 0
	for _, replica := range g.Replicas {
		calls, err := replica.calls(ctx, path)
		if err != nil {
			return 0, err
		}
		sum += calls
	}
	return sum, nil
}

func (r *Replica) calls(ctx context.Context, path string) (int, error) {
	metrics, err := r.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	calls, err := controlplane.Sum(metrics, "controller_runtime_webhook_requests_total", map[string]string{"code": "200", "webhook": path})
	return int(calls), err
}

// Get reads what is at a URL. Any status but 200 is an error.
func Get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("%s: %s: %s", url, resp.Status, body))
	}
	return body, errors.Join(err, resp.Body.Close())
}

// Install waits until the guard is ready, installs the shipped webhook
// configurations, pointed at it, and waits until the API server calls it.
func (g *Process) Install(ctx context.Context) error {
	for _, replica := range g.Replicas {
		if err := replica.WaitReady(ctx); err != nil {
			return err
		}
	}
	for _, hook := range g.webhooks.ValidatingWebhooks {
		hook.ResourceVersion = "" // of an installation before
	}
	for _, hook := range g.webhooks.MutatingWebhooks {
		hook.ResourceVersion = ""
	}
	if err := g.webhooks.Install(g.plane.Config); err != nil {
		return err
	}
	return g.waitCalled(ctx)
}

// waitCalled waits until the API server, which learns of webhook configurations
// by a watch, sends reviews to the hooks that are registered, by dry runs of a task pod.
func (g *Process) waitCalled(ctx context.Context) error {
	return wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		probe := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "solepod-probe", Labels: map[string]string{
				"kubernetes_pod_operator": "True", "dag_id": "probe", "task_id": "probe", "run_id": "probe",
			}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "base", Image: "probe"}}},
		}
		if err := g.plane.Admin.Create(ctx, probe, client.DryRunAll); err != nil {
			return false, err
		}
		stamped, stampErr := g.Calls(ctx, webhook.StampPath)
		asked, guardErr := g.Calls(ctx, webhook.GuardPath)
		stamps := slices.ContainsFunc(g.webhooks.MutatingWebhooks, func(c *admissionregistrationv1.MutatingWebhookConfiguration) bool {
			return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool { return w.Name == installation.StampHook })
		})
		return (stamped > 0 || !stamps) && asked > 0, errors.Join(stampErr, guardErr)
	})
}

// Uninstall removes the webhook configurations.
func (g *Process) Uninstall(ctx context.Context) error {
	var errs []error
	for _, object := range []client.Object{
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "solepod"}},
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "solepod"}},
	} {
		errs = append(errs, client.IgnoreNotFound(g.plane.Admin.Delete(ctx, object)))
	}
	return errors.Join(errs...)
}

// Stop ends the processes and removes their files.
func (g *Process) Stop() error {
	var errs []error
	for _, replica := range g.Replicas {
		errs = append(errs, replica.stop())
	}
	if g.balancer != nil {
		errs = append(errs, g.balancer.server.Close())
	}
	return errors.Join(append(errs, g.webhooks.Cleanup(), os.RemoveAll(g.dir))...)
}

// apply creates or updates the objects of a manifest, webhook configurations
// excepted.
func apply(ctx context.Context, plane *controlplane.ControlPlane, manifest string) error {
	content, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096); ; {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if object.Object == nil || strings.HasSuffix(object.GetKind(), "WebhookConfiguration") {
			continue
		}
		err := plane.Admin.Apply(ctx, client.ApplyConfigurationFromUnstructured(&object), client.FieldOwner("solepod-test"), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}
