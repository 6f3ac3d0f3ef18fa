// Package audit tests solepod audit and reclaim: the real commands, on a real control
// plane whose pods a kwok node runs.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true, Node: true}))
}

// solepod runs a command of it as an administrator, and returns what it prints,
// its exit code and its peak memory in bytes.
func command(t *testing.T, args ...string) (out string, code int, memory int64) {
	t.Helper()
	binary, err := solepod.Binary(t.Context())
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
	out, code, _ := command(t, append([]string{"audit", "-o", "json"}, args...)...)
	var r audit.Report
	// The output of stderr follows.
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
	pod := fixture.Pod(namespace, name)
	pod.Spec.NodeName = fixture.NodeName
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
	fixture.Eventually(t, func() error {
		err := plane.Admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod)
		if err == nil && pod.Status.Phase != phase {
			err = fmt.Errorf("phase %s", pod.Status.Phase)
		}
		return err
	})
}

// names returns the names of all pods in a namespace.
func names(t *testing.T, namespace string) []string {
	t.Helper()
	var out []string
	for _, pod := range pods(t, namespace).Items {
		out = append(out, pod.Name)
	}
	return out
}

func pods(t *testing.T, namespace string, options ...client.ListOption) *metav1.PartialObjectMetadataList {
	t.Helper()
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	if err := plane.Admin.List(t.Context(), &list, append(options, client.InNamespace(namespace))...); err != nil {
		t.Fatal(err)
	}
	return &list
}

// count returns how many pods a namespace has, and does not read them.
func count(t *testing.T, namespace string) int {
	t.Helper()
	first := pods(t, namespace, client.Limit(1))
	return len(first.Items) + int(ptr.Deref(first.RemainingItemCount, 0))
}

// fill writes n task pods into etcd. Every tenth of them has failed.
func fill(t *testing.T, namespace string, n int) {
	t.Helper()
	first := fixture.Pod(namespace, "task-00000 run_id=task-00000")
	if err := plane.Admin.Create(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	first.Status.Phase = corev1.PodFailed
	if err := plane.Admin.Status().Update(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	var (
		workers sync.WaitGroup
		next    atomic.Int64
		failed  = make(chan error, 16)
	)
	for range cap(failed) {
		workers.Go(func() {
			for i := next.Add(1); i < int64(n); i = next.Add(1) {
				pod := first.DeepCopy()
				pod.Name, pod.UID = fmt.Sprintf("task-%05d", i), uuid.NewUUID()
				pod.Labels["run_id"] = pod.Name
				if i%10 != 0 {
					pod.Status.Phase = corev1.PodRunning
				}
				if err := plane.Store(t.Context(), pod); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	workers.Wait()
	close(failed)
	for err := range failed {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		if got := count(t, namespace); got != n {
			return fmt.Errorf("%d pods, want %d", got, n)
		}
		return nil
	})
}

func eventuallyOnly(t *testing.T, namespace string, want ...string) {
	t.Helper()
	fixture.Eventually(t, func() error {
		if got := names(t, namespace); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("the pods are %q, want %q", got, want)
		}
		return nil
	})
}

// The incident without solepod: audit reports it, reclaim cleans it up, and with the
// guard it does not happen again.
func TestIncidentWithoutGuard(t *testing.T) {
	newNamespace(t, "airflow", nil)
	alpha, production := running(t, "airflow", "foo-bar-alpha", nil), running(t, "airflow", "foo-bar-production", nil)

	out, code, _ := command(t, "audit", "--namespace=airflow")
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
	if out, code, _ := command(t, "reclaim", "--yes", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "nothing to reclaim") {
		t.Errorf("exit code %d", code)
	}
	end(t, alpha, corev1.PodFailed)
	end(t, production, corev1.PodSucceeded)
	if out, code, _ := command(t, "reclaim", "-n", "airflow"); code != 0 || !strings.Contains(out, "nothing to reclaim") {
		t.Errorf("just after the end: exit code %d", code)
	}
	if out, code, _ := command(t, "reclaim", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "2 pods would be reclaimed") {
		t.Errorf("a dry run: exit code %d", code)
	}
	eventuallyOnly(t, "airflow", "foo-bar-alpha", "foo-bar-production")
	if out, code, _ := command(t, "reclaim", "--yes", "--older-than=0s", "-n", "airflow"); code != 0 || !strings.Contains(out, "reclaimed 2, changed 0, failed 0") {
		t.Errorf("exit code %d", code)
	}
	eventuallyOnly(t, "airflow")
	if _, code, _ := command(t, "audit", "-n", "airflow"); code != 0 {
		t.Errorf("exit code %d", code)
	}

	running(t, "airflow", "older", nil)
	g := solepod.Run(t, plane, solepod.Options{})
	fixture.Eventually(t, func() error {
		metrics, err := g.Metrics(t.Context())
		if err == nil && !strings.Contains(string(metrics), "\nsolepod_claims_adopted_total 1\n") {
			err = errors.New("nothing was adopted")
		}
		return err
	})
	if err := plane.Admin.Create(t.Context(), fixture.Pod("airflow", "younger")); !apierrors.IsForbidden(err) {
		t.Errorf("beside an adopted pod: %v", err)
	}
	if r := report(t, "-n", "airflow"); r.Found() || r.Pods != 1 {
		t.Errorf("with the guard on: %+v", r)
	}
}

// reclaim removes the pods that it may, among pods of all kinds.
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
	if out, code, _ := command(t, "reclaim", "--yes", "--older-than=0s", "-n", "kinds", "--kubeconfig", reader(t)); code != 1 || !strings.Contains(out, "reclaimed 0, changed 0, failed 3") {
		t.Errorf("without permission: exit code %d", code)
	}
	if out, code, _ := command(t, "reclaim", "--yes", "--older-than=0s", "-n", "kinds"); code != 0 || !strings.Contains(out, "reclaimed 3,") {
		t.Errorf("exit code %d", code)
	}
	eventuallyOnly(t, "kinds", "environment-gone", "first-try", "its-second-try", "kept", "live", "second-try")
	if out, code, _ := command(t, "reclaim", "--yes", "kinds/first-try"); code != 0 || !strings.Contains(out, "reclaimed 1,") {
		t.Errorf("by its name: exit code %d", code)
	}
	eventuallyOnly(t, "kinds", "environment-gone", "its-second-try", "kept", "live", "second-try")
	for args, want := range map[string]string{
		"kinds/nobody":       "there is no task pod kinds/nobody",
		"nobody":             `"nobody": want NAMESPACE/POD`,
		"--rate=0":           "--rate",
		"--output=x":         `--output "x": want one of go-template=..., json, jsonpath=..., table, yaml`,
		"--older-than=-1s":   "--older-than",
		"--kubeconfig=/none": "--kubeconfig",
	} {
		if out, code, _ := command(t, "reclaim", "--yes", args); code != 2 || !strings.Contains(out, want) {
			t.Errorf("%s: exit code %d", args, code)
		}
	}
}

// reader is the kubeconfig of a user with the permissions of a scan.
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

// The controller removes what solepod reclaim would remove.
func TestServe(t *testing.T) {
	newNamespace(t, "serve", nil)
	g := solepod.Run(t, plane, solepod.Options{
		Values: []string{"reclaim.olderThan=2s"}, Args: []string{"--reclaim-older-than=2s"},
	})
	end(t, running(t, "serve", "ended", nil), corev1.PodFailed)
	running(t, "serve", "live", func(pod *corev1.Pod) { pod.Labels["run_id"] = "live" })
	eventuallyOnly(t, "serve", "live")
	fixture.Eventually(t, func() error {
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
}

// As many task pods as a large cluster has: what is read of them fits into
// little memory, and what is left of a tenth of them is taken away.
func TestMany(t *testing.T) {
	const pods, leftovers = 20_000, 2_000
	newNamespace(t, "many", map[string]string{"airflow-environment": "alpha"})
	fill(t, "many", pods)
	// Two of them collide.
	running(t, "many", "collides", func(pod *corev1.Pod) { pod.Labels["run_id"] = "task-00001" })

	out, code, memory := command(t, "audit", "-n", "many", "--older-than=0s")
	if code != 1 || !strings.Contains(out, "20,001 task pods, 1 collision, 2,000 leftovers, 0 orphans") {
		t.Errorf("exit code %d", code)
	}
	t.Logf("audit has used %d MiB", memory>>20)
	const most = 128 << 20
	if memory > most {
		t.Errorf("audit has used %d MiB", memory>>20)
	}
	// Interrupted, and done again.
	binary, err := solepod.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reclaim := []string{"reclaim", "--yes", "--older-than=0s", "-n", "many"}
	first := exec.CommandContext(t.Context(), binary, append(reclaim, "--rate=20")...)
	first.Env = append(first.Environ(), "KUBECONFIG="+plane.Kubeconfig)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		if left := count(t, "many"); left == pods+1 {
			return fmt.Errorf("%d pods", left)
		}
		return nil
	})
	if err := errors.Join(first.Process.Signal(syscall.SIGTERM), ignoreExit(first.Wait())); err != nil {
		t.Fatal(err)
	}
	left := count(t, "many")
	t.Logf("interrupted with %d pods left", left)
	if left == pods+1-leftovers {
		t.Error("it was done before it was interrupted")
	}
	if out, code, _ := command(t, append(reclaim, "--rate=300")...); code != 0 || !strings.Contains(out, "failed 0") {
		t.Errorf("exit code %d", code)
	}
	if left := count(t, "many"); left != pods+1-leftovers {
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
