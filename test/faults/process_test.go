package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// The leader is killed while it drops the claims of many pods that are gone.
// The next one finishes, and takes nothing away from a pod that lives.
func TestLeaderLostWhileItSweeps(t *testing.T) {
	const tasks, lives = 300, 10 // each tenth
	g := solepod.Run(t, plane, solepod.Options{Replicas: 2})
	clients := solepod.Airflows(t, plane, jobs)
	fixture.Eventually(t, func() error {
		if leader(t, g) == nil {
			return errors.New("no replica leads")
		}
		return nil
	})
	run := func(i int) string { return fmt.Sprintf("sweep-%03d", i) }
	var all sync.WaitGroup
	for w := range 10 {
		all.Go(func() {
			for i := w; i < tasks; i += 10 {
				p := pod(run(i), run(i), fmt.Sprintf("goes=%v", i%lives != 0))
				if err := clients["alpha"].Create(t.Context(), p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	claims := func() map[string]bool {
		out := map[string]bool{}
		for _, lease := range solepod.Claims(t, plane) {
			if strings.HasPrefix(lease.Labels["run_id"], "sweep-") {
				out[lease.Labels["run_id"]] = true
			}
		}
		return out
	}
	killed := leader(t, g)
	gone := make(chan error, 1)
	go func() {
		gone <- plane.Admin.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(jobs), client.MatchingLabels{"goes": "true"}, client.GracePeriodSeconds(0))
	}()
	fixture.Eventually(t, func() error { // as soon as it has begun
		if len(claims()) == tasks {
			return errors.New("no claim was dropped")
		}
		return nil
	})
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	left := len(claims())
	t.Logf("killed with %d of %d claims left to drop", left-tasks/lives, tasks-tasks/lives)
	if left == tasks/lives {
		t.Error("it had finished")
	}
	want := map[string]bool{}
	for i := 0; i < tasks; i += lives {
		want[run(i)] = true
	}
	fixture.Eventually(t, func() error {
		if got := claims(); !maps.Equal(got, want) {
			return fmt.Errorf("%d claims, want %d", len(got), len(want))
		}
		return nil
	})
	revive(t, g)
	for i := 0; i < tasks; i += lives {
		held(t, pod(run(i), ""), run(i))
		if err := clients["production"].Create(t.Context(), pod(run(i), "sweep-rival")); outcome(err) != "403 DuplicateEnvironment" {
			t.Errorf("%s: %v", run(i), err)
		}
	}
	works(t, g, clients, "sweep")
}

// setFailurePolicy changes it on all hooks.
func setFailurePolicy(t *testing.T, to admissionregistrationv1.FailurePolicyType) {
	t.Helper()
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	for _, object := range []client.Object{&validating, &mutating} {
		if err := plane.Admin.Get(t.Context(), client.ObjectKey{Name: "solepod"}, object); err != nil {
			t.Fatal(err)
		}
	}
	for i := range validating.Webhooks {
		validating.Webhooks[i].FailurePolicy = &to
	}
	for i := range mutating.Webhooks {
		mutating.Webhooks[i].FailurePolicy = &to
	}
	for _, object := range []client.Object{&validating, &mutating} {
		if err := plane.Admin.Update(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

// collisions are the tasks' runs that solepod audit reports.
func collisions(t *testing.T) []string {
	t.Helper()
	binary, err := solepod.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "audit", "-o", "json", "--kubeconfig="+plane.Kubeconfig)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() != 1 || err != nil && exit == nil {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	var report audit.Report
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var runs []string
	for _, c := range report.Collisions {
		runs = append(runs, c.Run)
	}
	return runs
}

// No replica answers. With failurePolicy Fail nothing is created; with Ignore
// all is, and solepod finds out afterwards.
func TestAllReplicasDown(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{Replicas: 2})
	clients := solepod.Airflows(t, plane, jobs)
	for _, replica := range g.Replicas {
		if err := replica.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range race(t, clients, "down-fail", 4) {
		if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "stamp.solepod.io"`) {
			t.Errorf("with Fail: %v", err)
		}
	}
	if pods := podsOf(t, "down-fail"); len(pods) != 0 {
		t.Errorf("with Fail: %q", pods)
	}

	setFailurePolicy(t, admissionregistrationv1.Ignore)
	fixture.Eventually(t, func() error { return clients["alpha"].Create(t.Context(), pod("down-ignore", "down-alpha")) })
	if err := clients["production"].Create(t.Context(), pod("down-ignore", "down-production")); err != nil {
		t.Errorf("with Ignore: %v", err)
	}
	revive(t, g)
	held(t, pod("down-ignore", ""), "down-alpha", "down-production")
	if got := collisions(t); !slices.Contains(got, "down-ignore") {
		t.Errorf("solepod audit reports %q", got)
	}
	works(t, g, clients, "down")
}

// What other hands, or another version of solepod, have made of claims. That
// one is deleted or edited into garbage is in TestKnownBugs of
// test/integration.
func TestClaimOfAnotherVersion(t *testing.T) {
	solepod.Run(t, plane, solepod.Options{Replicas: 2})
	clients := solepod.Airflows(t, plane, jobs)
	// In this version, it would be the claim of a pod that was deleted long ago.
	format := map[string]string{"solepod.io/holders": `[{"of":"a format to come","claimedAt":"2023-03-08T09:13:29Z"}]`}
	other := func(run string) {
		t.Helper()
		fixture.Eventually(t, func() error {
			lease, err := claimOf(t, pod(run, ""))
			if err != nil {
				return err
			}
			lease.Labels[claim.Label] = "v2"
			lease.Annotations = format
			return plane.Admin.Update(t.Context(), lease)
		})
	}
	t.Run("of a pod that is there", func(t *testing.T) {
		if err := clients["alpha"].Create(t.Context(), pod("v2", "v2-x")); err != nil {
			t.Fatal(err)
		}
		other("v2")
		unique(t, "v2", append(race(t, clients, "v2", 8), nil), 1, "403 DuplicateEnvironment", "403 DuplicateTry", "409 InFlight")
		held(t, pod("v2", ""), "", "v2-x") // and an unknown one, as long as one might be in flight
		if lease, err := claimOf(t, pod("v2", "")); err != nil || lease.Labels[claim.Label] != "v1" {
			t.Errorf("%v: %v", err, lease.Labels)
		}
	})
	t.Run("of pods of which nothing is known", func(t *testing.T) {
		id, _ := taskpod.FromMeta(pod("v2-alone", ""), "").Identity()
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
			Namespace: solepod.Namespace, Name: claim.Name(id), Labels: map[string]string{claim.Label: "v2"}, Annotations: format,
		}}
		if err := plane.Admin.Create(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		unique(t, "v2-alone", race(t, clients, "v2-alone", 8), 0, "409 InFlight")
		held(t, pod("v2-alone", ""), "")
		// A minute later, when none of them can be in flight any more.
		fixture.Eventually(t, func() error {
			lease, err := claimOf(t, pod("v2-alone", ""))
			if err != nil {
				return err
			}
			lease.Annotations["solepod.io/holders"] = `[{"claimedAt":"2023-03-08T09:13:29Z"}]`
			return plane.Admin.Update(t.Context(), lease)
		})
		fixture.Eventually(t, func() error { return clients["alpha"].Create(t.Context(), pod("v2-alone", "v2-alone")) })
	})
}

// The namespace of claims is deleted. No task pod is created, with a word of
// what to do, until solepod is installed again, which takes up what is there.
func TestNamespaceDeleted(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{Replicas: 2})
	clients := solepod.Airflows(t, plane, jobs)
	if err := clients["alpha"].Create(t.Context(), pod("gone-live", "gone-live")); err != nil {
		t.Fatal(err)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: solepod.Namespace}}
	if err := plane.Admin.Delete(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	attempts := 0
	refused := func() error {
		attempts++
		run := fmt.Sprintf("gone-%d", attempts)
		err := clients["alpha"].Create(t.Context(), pod(run, run))
		const cure = "; namespace solepod-system, or the permission to write claims in it, is missing: install solepod again, or delete its webhook configurations"
		if outcome(err) != "500" || !strings.HasSuffix(err.Error(), cure) {
			return fmt.Errorf("%w", err)
		}
		return nil
	}
	fixture.Eventually(t, refused)
	if err := clients["production"].Create(t.Context(), pod("gone-live", "gone-rival")); outcome(err) != "403 DuplicateEnvironment" {
		t.Errorf("what is known is denied all the same: %v", err)
	}
	fixture.Eventually(t, func() error {
		if err := plane.Admin.Get(t.Context(), client.ObjectKeyFromObject(namespace), namespace); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the namespace is there: %w", err)
		}
		return nil
	})
	if err := refused(); err != nil {
		t.Error(err)
	}
	for _, replica := range g.Replicas { // their pods are gone
		if err := replica.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	g = solepod.Run(t, plane, solepod.Options{Replicas: 2})
	held(t, pod("gone-live", ""), "gone-live")
	if err := clients["production"].Create(t.Context(), pod("gone-live", "gone-rival")); outcome(err) != "403 DuplicateEnvironment" {
		t.Error(err)
	}
	works(t, g, clients, "gone")
}

// untilAnswered creates pods of one task with n clients. Each client retries until it
// gets a response without a server error.
func untilAnswered(t *testing.T, clients map[string]client.Client, run string, n int) {
	t.Helper()
	environments := slices.Sorted(maps.Keys(clients))
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			p := pod(run, fmt.Sprintf("%s-%d", run, i))
			err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
				err := clients[environments[i%len(environments)]].Create(ctx, p.DeepCopy())
				return err == nil || apierrors.ReasonForError(err) == metav1.StatusReasonForbidden || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err), nil
			})
			if err != nil {
				t.Errorf("%s: %v", p.Name, err)
			}
		})
	}
	all.Wait()
}

// API server and etcd are restarted while 16 clients at a time create pods of
// one task, and try again as long as it takes.
func TestAPIServerRestartsInARace(t *testing.T) {
	const creates, after = 16, 3
	g := solepod.Run(t, plane, solepod.Options{Replicas: 3})
	clients := solepod.Airflows(t, plane, jobs)
	restarted := make(chan error, 1)
	go func() { restarted <- plane.Restart() }()
	rounds := 0
	for left := after; left > 0; rounds++ {
		untilAnswered(t, clients, fmt.Sprintf("restart-%d", rounds), creates)
		if left < after {
			left--
			continue
		}
		select {
		case err := <-restarted:
			if err != nil {
				t.Fatal(err)
			}
			left--
		default: // it is still under way
		}
	}
	none := 0
	for round := range rounds {
		switch pods := podsOf(t, fmt.Sprintf("restart-%d", round)); len(pods) {
		case 0:
			none++
		case 1:
		default:
			t.Errorf("%q", pods)
		}
	}
	t.Logf("%d rounds, %d with no pod", rounds, none)
	works(t, g, clients, "restart")
}
