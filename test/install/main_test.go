// Package install tests what is installed, as it is installed: the chart by
// Helm, or the rendered manifests by kubectl, into a real control plane, where
// the Deployment's pods are processes that the API server calls through their
// Service.
package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/chart"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/kubelet"
	"github.com/solepod/solepod/test/solepod"
)

// plane is the control plane that the package's tests share; each installs
// solepod and removes it.
var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true, Node: true}))
}

const namespace = chart.Namespace

// cluster is the control plane with nodes on which solepod can run, and two
// namespaces for Airflows.
type cluster struct {
	t       *testing.T
	root    string
	bin     string // has solepod, helm and kubectl
	kubelet *kubelet.Kubelet
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	// As in solepod.Run: the result depends on the version of the control plane.
	paths, err := controlplane.Build(t.Context(), os.Stderr, controlplane.KubeAPIServer, controlplane.Kubectl, controlplane.Helm)
	if err != nil {
		t.Fatal(err)
	}
	root, err := controlplane.Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, root: root, bin: t.TempDir()}
	binary, err := solepod.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.Symlink(binary, filepath.Join(c.bin, "solepod")),
		os.Symlink(paths[controlplane.Kubectl], filepath.Join(c.bin, "kubectl")),
		os.Symlink(paths[controlplane.Helm], filepath.Join(c.bin, "helm")),
	); err != nil {
		t.Fatal(err)
	}
	if c.kubelet, err = kubelet.Start(t.Context(), plane, kubelet.Options{
		Namespace: namespace, Binary: binary, Nodes: []string{"node-1", "node-2"},
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"airflow-alpha", "airflow-production"} {
		err := plane.Admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, pod := range c.kubelet.Running() {
				log, err := os.ReadFile(pod.Log)
				t.Logf("the end of the log of %s (%v):\n%s", pod.Name, err, log[max(0, len(log)-4000):])
			}
		}
		c.remove(context.Background())
		if err := c.kubelet.Stop(); err != nil {
			t.Errorf("the kubelet: %v", err)
		}
	})
	return c
}

// within is the same cluster, for a subtest.
func (c *cluster) within(t *testing.T) *cluster {
	sub := *c
	sub.t = t
	return &sub
}

// sh runs a script in the root of the repository, as a user would, and returns
// its output.
func (c *cluster) sh(ctx context.Context, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = c.root
	cmd.Env = append(cmd.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"), "KUBECONFIG="+plane.Kubeconfig)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return string(out), err
}

func (c *cluster) mustSh(script string) string {
	c.t.Helper()
	out, err := c.sh(c.t.Context(), script)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// install installs the chart with values, as helm flags, and names the
// environments.
func (c *cluster) install(flags string) {
	c.t.Helper()
	c.mustSh("helm install solepod manifests/chart --namespace solepod-system --create-namespace --wait " + flags)
	c.mustSh("kubectl label --overwrite namespace airflow-alpha airflow-environment=alpha && kubectl label --overwrite namespace airflow-production airflow-environment=production")
	c.called()
}

// called waits until API servers call the webhooks and trust them.
func (c *cluster) called() {
	c.t.Helper()
	fixture.Eventually(c.t, func() error {
		pod := taskPod("called", "x")
		delete(pod.Labels, "airflow-environment")
		if err := plane.Admin.Create(c.t.Context(), pod, client.DryRunAll); err != nil {
			return err
		}
		if got := pod.Labels["airflow-environment"]; got != "alpha" {
			return fmt.Errorf("stamped %q", got)
		}
		return nil
	})
}

// remove removes an installation and waits for the end of the removal. It deletes the
// pods first: the namespace controller retries only after half their grace period.
func (c *cluster) remove(ctx context.Context) {
	c.t.Helper()
	if _, err := c.sh(ctx, `kubectl delete --ignore-not-found validatingwebhookconfiguration,mutatingwebhookconfiguration solepod
kubectl delete --ignore-not-found --wait=false clusterrole,clusterrolebinding,flowschema,prioritylevelconfiguration solepod
kubectl delete --namespace `+namespace+` --wait=false --cascade=orphan deployments,replicasets --all
kubectl delete --namespace `+namespace+` --force pods --all
kubectl delete --ignore-not-found --timeout=2m namespace `+namespace+`
kubectl delete pods --all --force --namespace airflow-alpha
kubectl label namespace airflow-alpha airflow-production airflow-environment-`); err != nil {
		c.t.Error(err)
	}
}

// taskPod is one of alpha's, as it declares.
func taskPod(run, name string) *corev1.Pod {
	return fixture.Pod("airflow-alpha", name+" alpha! run_id="+run)
}

// load creates task pods, one after another, until it is stopped. The result
// is how many were admitted, and what became of the others.
type load struct {
	stop     context.CancelFunc
	done     sync.WaitGroup
	mu       sync.Mutex
	admitted int
	failures []error
}

func startLoad(t *testing.T, workers int) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel}
	for w := range workers {
		l.done.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("load-%d-%d", w, i)
				pod := taskPod(name, name)
				// What was begun is finished: the end of the load is no failure.
				err := plane.Admin.Create(context.WithoutCancel(ctx), pod)
				if err == nil {
					err = plane.Admin.Delete(context.WithoutCancel(ctx), pod, client.GracePeriodSeconds(0))
				}
				l.mu.Lock()
				if err == nil {
					l.admitted++
				} else {
					l.failures = append(l.failures, err)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// end stops the load, and fails the test if any create failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%d creates while that went on, %d failed", l.admitted, len(l.failures))
	if len(l.failures) > 0 {
		t.Errorf("%d failed, the first: %v", len(l.failures), l.failures[0])
	}
	if l.admitted == 0 {
		t.Error("nothing was created")
	}
}

// green waits until all checks are.
func (c *cluster) green() {
	c.t.Helper()
	fixture.Eventually(c.t, func() error {
		out, err := c.sh(c.t.Context(), "solepod check")
		if err != nil {
			return err
		}
		if strings.Contains(out, " warning 0, failed 0,") {
			return nil
		}
		return errors.New(out)
	})
}

// guarded fails the test unless a duplicate is denied.
func (c *cluster) guarded(run string) {
	c.t.Helper()
	if err := plane.Admin.Create(c.t.Context(), taskPod(run, run+"-1")); err != nil {
		c.t.Error(err)
	}
	err := plane.Admin.Create(c.t.Context(), taskPod(run, run+"-2"))
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "[DuplicateTry]") {
		c.t.Errorf("a duplicate: %v", err)
	}
}

// serials are those of the certificates that the replicas serve.
func serials(ctx context.Context, pods []kubelet.Pod) (out []string, err error) {
	for _, pod := range pods {
		serial, err := serialAt(ctx, pod.Address)
		if err != nil {
			return nil, err
		}
		out = append(out, serial)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func metrics(ctx context.Context, pod kubelet.Pod) ([]byte, error) {
	return solepod.Get(ctx, "http://"+pod.MetricsAddress+"/metrics")
}
