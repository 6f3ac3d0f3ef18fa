// Package audit tests what looks at a cluster and cleans it up: the real
// commands, on a real control plane whose pods a kwok node runs.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/guard"
	"github.com/solepod/solepod/test/incident"
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true, Node: true}))
}

// solepod runs a command of it as an administrator, and returns what it prints,
// its exit code and its peak memory in bytes.
func solepod(t *testing.T, args ...string) (out string, code int, memory int64) {
	t.Helper()
	binary, err := guard.Binary(t.Context(), plane)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+plane.Kubeconfig)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("$ solepod %s\n%s%s", strings.Join(args, " "), stdout, &stderr)
	return string(stdout) + stderr.String(), cmd.ProcessState.ExitCode(), cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss * 1024
}

func report(t *testing.T, args ...string) audit.Report {
	t.Helper()
	out, code, _ := solepod(t, append([]string{"audit", "-o", "json"}, args...)...)
	var r audit.Report
	// What is said on stderr stands behind it.
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&r); err != nil || code > 1 {
		t.Fatalf("exit code %d, %v", code, err)
	}
	return r
}

func newNamespace(t *testing.T, name string, labels map[string]string) {
	t.Helper()
	if err := plane.Admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}); err != nil {
		t.Fatal(err)
	}
}

// running creates a pod of the incident, and waits until the node runs it.
func running(t *testing.T, namespace, name string, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	pod := incident.Pod(namespace, name)
	pod.Spec.NodeName = controlplane.NodeName
	if change != nil {
		change(pod)
	}
	if err := plane.Admin.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	await(t, pod, corev1.PodRunning)
	return pod
}

func end(t *testing.T, pod *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, controlplane.AnnotationEnd, phase)
	if err := plane.Admin.Patch(t.Context(), pod, client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
	await(t, pod, phase)
}

func await(t *testing.T, pod *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	eventually(t, func() error {
		err := plane.Admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod)
		if err == nil && pod.Status.Phase != phase {
			err = fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return err
	})
}

func eventually(t *testing.T, condition func() error) {
	t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 2*time.Minute, true, func(context.Context) (bool, error) {
		last = condition()
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("%v: %v", err, last)
	}
}

func names(t *testing.T, namespace string) []string {
	t.Helper()
	var pods corev1.PodList
	if err := plane.Admin.List(t.Context(), &pods, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, pod := range pods.Items {
		out = append(out, pod.Name)
	}
	return out
}

func eventuallyOnly(t *testing.T, namespace string, want ...string) {
	t.Helper()
	eventually(t, func() error {
		if got := names(t, namespace); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the pods are %q, want %q", got, want)
		}
		return nil
	})
}

// The incident as it happens without solepod, which is then told, cleaned up,
// and, once the guard is on, does not happen again.
func TestIncidentWithoutGuard(t *testing.T) {
	newNamespace(t, "airflow", nil)
	alpha, production := running(t, "airflow", "foo-bar-alpha", nil), running(t, "airflow", "foo-bar-production", nil)

	out, code, _ := solepod(t, "audit", "--namespace=airflow")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	const screen = 40
	if lines := strings.Count(out, "\n"); lines > screen {
		t.Errorf("%d lines", lines)
	}
	for _, want := range []string{"foo-bar-alpha", "foo-bar-production", "More than one pod running with labels", "not installed"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if r := report(t, "--namespace=elsewhere"); r.Found() {
		t.Errorf("elsewhere: %+v", r)
	}

	// While the tasks run, nothing goes.
	if out, code, _ := solepod(t, "reclaim", "--yes", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "nothing to reclaim") {
		t.Errorf("exit code %d", code)
	}
	end(t, alpha, corev1.PodFailed)
	end(t, production, corev1.PodSucceeded)
	if out, code, _ := solepod(t, "reclaim", "-n", "airflow"); code != 0 || !strings.Contains(out, "nothing to reclaim") {
		t.Errorf("just after the end: exit code %d", code)
	}
	if out, code, _ := solepod(t, "reclaim", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "2 pods would be reclaimed") {
		t.Errorf("a dry run: exit code %d", code)
	}
	eventuallyOnly(t, "airflow", "foo-bar-alpha", "foo-bar-production")
	if out, code, _ := solepod(t, "reclaim", "--yes", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "reclaimed 2, changed 0, failed 0") {
		t.Errorf("exit code %d", code)
	}
	eventuallyOnly(t, "airflow")
	if _, code, _ := solepod(t, "audit", "-n", "airflow"); code != 0 {
		t.Errorf("exit code %d", code)
	}

	running(t, "airflow", "older", nil)
	g := guard.Run(t, plane, guard.Options{})
	eventually(t, func() error {
		metrics, err := g.Metrics(t.Context())
		if err == nil && !strings.Contains(string(metrics), "\nsolepod_claims_adopted_total 1\n") {
			err = errors.New("nothing was adopted")
		}
		return err
	})
	if err := plane.Admin.Create(t.Context(), incident.Pod("airflow", "younger")); !apierrors.IsForbidden(err) {
		t.Errorf("beside an adopted pod: %v", err)
	}
	if r := report(t, "-n", "airflow"); r.Found() || r.Pods != 1 {
		t.Errorf("with the guard on: %+v", r)
	}
}

// Pods of all kinds, of which reclaim takes those that it may.
func TestReclaim(t *testing.T) {
	newNamespace(t, "kinds", map[string]string{"airflow-environment": "alpha"})
	labelled := func(labels ...string) func(*corev1.Pod) {
		return func(pod *corev1.Pod) {
			for i := 0; i < len(labels); i += 2 {
				pod.Labels[labels[i]] = labels[i+1]
			}
		}
	}
	running(t, "kinds", "live", labelled("run_id", "1", "airflow-environment", "alpha"))
	running(t, "kinds", "first-try", labelled("run_id", "2", "airflow-environment", "alpha"))
	running(t, "kinds", "second-try", labelled("run_id", "2", "airflow-environment", "alpha", "try_number", "2"))
	running(t, "kinds", "environment-gone", labelled("run_id", "3", "airflow-environment", "gone"))
	end(t, running(t, "kinds", "ended", labelled("run_id", "4")), corev1.PodSucceeded)
	end(t, running(t, "kinds", "kept", labelled("run_id", "5", "already_checked", "True")), corev1.PodFailed)
	end(t, running(t, "kinds", "interrupted", func(pod *corev1.Pod) {
		labelled("run_id", "6", "already_checked", "True")(pod)
		pod.Annotations = map[string]string{"solepod.io/retired": "reclaimed: Leftover"}
	}), corev1.PodFailed)
	end(t, running(t, "kinds", "ended-first-try", labelled("run_id", "7")), corev1.PodFailed)
	running(t, "kinds", "its-second-try", labelled("run_id", "7", "try_number", "2"))

	r := report(t, "-n", "kinds", "--older-than=0s")
	got := map[string]string{}
	for _, f := range append(r.Leftovers, r.Orphans...) {
		got[f.Name] = fmt.Sprint(f.Reason, " ", f.Safe)
	}
	want := map[string]string{
		"first-try": "SupersededTry false", "environment-gone": "UnknownEnvironment false",
		"ended": "Leftover true", "interrupted": "Leftover true", "ended-first-try": "SupersededTry true",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
	if out, code, _ := solepod(t, "reclaim", "--yes", "--older-than=0s", "-n", "kinds", "--kubeconfig", reader(t)); code != 1 || !strings.Contains(out, "reclaimed 0, changed 0, failed 3") {
		t.Errorf("without permission: exit code %d", code)
	}
	if out, code, _ := solepod(t, "reclaim", "--yes", "--older-than=0s", "-n", "kinds"); code != 0 || !strings.Contains(out, "reclaimed 3,") {
		t.Errorf("exit code %d", code)
	}
	eventuallyOnly(t, "kinds", "environment-gone", "first-try", "its-second-try", "kept", "live", "second-try")
	if out, code, _ := solepod(t, "reclaim", "--yes", "kinds/first-try"); code != 0 || !strings.Contains(out, "reclaimed 1,") {
		t.Errorf("by its name: exit code %d", code)
	}
	eventuallyOnly(t, "kinds", "environment-gone", "its-second-try", "kept", "live", "second-try")
	for args, want := range map[string]string{
		"kinds/nobody":       "there is no task pod kinds/nobody",
		"nobody":             `"nobody": want NAMESPACE/POD`,
		"--rate=0":           "--rate",
		"--output=x":         `--output "x": want json or table or yaml`,
		"--older-than=-1s":   "--older-than",
		"--kubeconfig=/none": "--kubeconfig",
	} {
		if out, code, _ := solepod(t, "reclaim", "--yes", args); code != 2 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d", args, code)
		}
	}
}

// reader is the kubeconfig of somebody who may read what a scan reads.
func reader(t *testing.T) string {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: "kinds", Name: "reader"}
	for _, object := range []client.Object{
		&rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "namespaces", "serviceaccounts", "configmaps"}, Verbs: []string{"get", "list"}},
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"list"}},
		}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: meta.Namespace, Name: meta.Name}},
		},
	} {
		if err := plane.Admin.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	identity, err := plane.ServiceAccount(t.Context(), meta.Namespace, meta.Name)
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := errors.Join(err, controlplane.WriteKubeconfig(identity, kubeconfig)); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// The controller takes what reclaim would, and the page tells what is there.
func TestServe(t *testing.T) {
	newNamespace(t, "serve", nil)
	g := guard.Run(t, plane, guard.Options{
		Values: []string{"reclaim.olderThan=2s"}, Args: []string{"--reclaim-older-than=2s", "--audit-page"},
	})
	end(t, running(t, "serve", "ended", nil), corev1.PodFailed)
	running(t, "serve", "live", func(pod *corev1.Pod) { pod.Labels["run_id"] = "live" })
	eventuallyOnly(t, "serve", "live")
	eventually(t, func() error {
		metrics, err := g.Metrics(t.Context())
		if err != nil {
			return err
		}
		for _, want := range []string{
			`solepod_pods_reclaimed_total{outcome="Reclaimed",reason="Leftover"}`, `solepod_claims_swept_total `,
			`solepod_claims{state="held"} [1-9]`, `solepod_cache_last_update_timestamp_seconds{kind="Pod"} 1`, `solepod_claim_duration_seconds_count{outcome="taken"}`,
		} {
			if !regexp.MustCompile("(?m)^" + want).Match(metrics) {
				return fmt.Errorf("no %s in the metrics", want)
			}
		}
		return nil
	})
	page, err := g.AuditPage(t.Context())
	if err != nil || !strings.Contains(string(page), `id="decisions"`) {
		t.Errorf("%v\n%s", err, page)
	}
}

// As many task pods as a large cluster has: what is read of them fits into
// little memory, and what is left of a tenth of them is taken away.
func TestMany(t *testing.T) {
	const pods, every = 20_000, 10
	newNamespace(t, "many", map[string]string{"airflow-environment": "alpha"})
	var workers sync.WaitGroup
	failed := make(chan error, 32)
	for w := range cap(failed) {
		workers.Go(func() {
			for i := w; i < pods; i += cap(failed) {
				pod := incident.Pod("many", fmt.Sprintf("task-%05d", i))
				pod.Labels["run_id"] = pod.Name
				err := plane.Admin.Create(t.Context(), pod)
				if err == nil && i%every == 0 {
					pod.Status.Phase = corev1.PodFailed
					err = plane.Admin.Status().Update(t.Context(), pod)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	workers.Wait()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	// Two of them collide.
	running(t, "many", "collides", func(pod *corev1.Pod) { pod.Labels["run_id"] = "task-00001" })

	out, code, memory := solepod(t, "audit", "-n", "many", "--older-than=0s")
	if code != 1 || !strings.Contains(out, fmt.Sprintf("%d task pods, 1 collisions, %d leftovers, 0 orphans", pods+1, pods/every)) {
		t.Errorf("exit code %d", code)
	}
	t.Logf("audit has used %d MiB", memory>>20)
	const most = 128 << 20
	if memory > most {
		t.Errorf("audit has used %d MiB", memory>>20)
	}
	// Interrupted, and done again.
	binary, err := guard.Binary(t.Context(), plane)
	if err != nil {
		t.Fatal(err)
	}
	reclaim := []string{"reclaim", "--yes", "--older-than=0s", "-n", "many", "--rate=300"}
	first := exec.CommandContext(t.Context(), binary, reclaim...)
	first.Env = append(first.Environ(), "KUBECONFIG="+plane.Kubeconfig)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if left := len(names(t, "many")); left == pods+1 {
			return fmt.Errorf("%d pods", left)
		}
		return nil
	})
	if err := errors.Join(first.Process.Signal(syscall.SIGTERM), ignoreExit(first.Wait())); err != nil {
		t.Fatal(err)
	}
	left := len(names(t, "many"))
	t.Logf("interrupted with %d pods left", left)
	if left == pods+1-pods/every {
		t.Error("it was done before it was interrupted")
	}
	if out, code, _ := solepod(t, reclaim...); code != 0 || !strings.Contains(out, "failed 0") {
		t.Errorf("exit code %d", code)
	}
	if left := len(names(t, "many")); left != pods+1-pods/every {
		t.Errorf("%d pods are left", left)
	}
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
