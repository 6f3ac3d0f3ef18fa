package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// claims are the claims of a world, with their holders.
func (w *world) claims() map[string][]claim.Holder {
	w.t.Helper()
	out := map[string][]claim.Holder{}
	for _, lease := range solepod.Claims(w.t, plane, client.MatchingLabels{claim.LabelNamespace: w.jobs}) {
		var holders []claim.Holder
		if err := json.Unmarshal([]byte(lease.Annotations["solepod.io/holders"]), &holders); err != nil {
			w.t.Fatalf("%s: %v", lease.Name, err)
		}
		out[lease.Name] = holders
	}
	return out
}

// held is the names of all holders of all claims, sorted.
func (w *world) held() []string {
	w.t.Helper()
	names := []string{}
	for _, holders := range w.claims() {
		for _, h := range holders {
			names = append(names, h.Pod)
		}
	}
	slices.Sort(names)
	return names
}

// eventuallyHeld waits until the claims are held by these pods.
func (w *world) eventuallyHeld(want ...string) {
	w.t.Helper()
	fixture.Eventually(w.t, func() error {
		if got := w.held(); !slices.Equal(got, want) {
			return fmt.Errorf("the claims are held by %q, want %q", got, want)
		}
		return nil
	})
}

func (w *world) mustHold(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.held(), cmpopts.EquateEmpty()); diff != "" {
		w.t.Error(diff)
	}
}

// leaseOf is the claim of a pod's task.
func (w *world) leaseOf(pod *corev1.Pod) *coordinationv1.Lease {
	w.t.Helper()
	id, _ := taskpod.FromMeta(pod, "").Identity()
	lease := &coordinationv1.Lease{}
	if err := w.admin.Get(w.t.Context(), client.ObjectKey{Namespace: solepod.Namespace, Name: claim.Name(id)}, lease); err != nil {
		w.t.Fatal(err)
	}
	return lease
}

// age makes the claims of the world old ones.
func (w *world) age() {
	w.t.Helper()
	solepod.AgeClaims(w.t, plane, client.MatchingLabels{claim.LabelNamespace: w.jobs})
}

func (w *world) delete(pod *corev1.Pod) {
	w.t.Helper()
	if err := w.admin.Delete(w.t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		w.t.Fatal(err)
	}
}

func TestClaimsReadWell(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "read")
	pod := w.mustCreate(w.airflow("alpha"), "export-action-log-4devg7t1")
	lease := w.leaseOf(pod)
	want := map[string]string{
		"airflow-environment": "alpha", "dag_id": "foo-bar-dag-id", "task_id": "foo-bar-task-id",
		"run_id": "scheduled__2023-03-08T0130000000-77fa57adf", "solepod.io/claim": "v1", "solepod.io/namespace": "read-jobs",
	}
	if diff := cmp.Diff(want, lease.Labels); diff != "" {
		t.Error(diff)
	}
	// What kubectl get leases prints is a table that the API server makes.
	clients, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := clients.CoordinationV1().RESTClient().Get().Namespace(solepod.Namespace).Resource("leases").Name(lease.Name).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil {
		t.Fatal(err)
	}
	if holder := table.Rows[0].Cells[1]; table.ColumnDefinitions[1].Name != "Holder" || table.ColumnDefinitions[2].Name != "Age" ||
		holder != "export-action-log-4devg7t1 (alpha)" {
		t.Errorf("%s", raw)
	}
}

// kube-state-metrics shows the spec of all Leases. With Discreet, it has no names of tasks,
// and claims work as before.
func TestDiscreetClaims(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: "apiVersion: solepod.io/v1alpha1\nkind: Configuration\ndisclosure: Discreet\n"})
	w := newWorld(t, "discreet-claims")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	pod := w.mustCreate(alpha, "export-action-log-4devg7t1")
	lease := w.leaseOf(pod)
	shown, err := json.Marshal([]any{lease.Labels, lease.Spec})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"foo-bar-dag-id", "foo-bar-task-id", "2023-03-08", "export-action-log"} {
		if strings.Contains(string(shown), name) {
			t.Errorf("%s is in %s", name, shown)
		}
	}
	if _, err := w.create(production, "other"); err == nil {
		t.Error("a duplicate was admitted")
	}
	if err := alpha.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	w.eventuallyHeld() // the leader deletes the claim
}

func TestDryRunsAndDenialsLeaveNoClaim(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "dry")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	for _, line := range []string{"x", "y map_index=1"} {
		if err := alpha.Create(t.Context(), w.pod(line), client.DryRunAll); err != nil {
			t.Fatal(err)
		}
	}
	w.mustHold()
	w.mustCreate(alpha, "x")
	if _, err := w.create(production, "y"); err == nil {
		t.Fatal("a duplicate was admitted")
	}
	w.mustHold("x")
}

// Bugs of other projects that keep state in addition to the pods. Those that need
// a certain interleaving are variants in TestBrokenProtocolsAreFound of
// package claim.
func TestKnownBugs(t *testing.T) {
	g := shared.Run(t, plane)

	t.Run("matching by pod name across a delete and recreate", func(t *testing.T) {
		w := newWorld(t, "by-name")
		alpha := w.airflow("alpha")
		for range 10 { // the event of one deletion arrives while the next claim is taken
			w.delete(w.mustCreate(alpha, "x"))
		}
		pod := w.mustCreate(alpha, "x")
		w.age()
		fixture.Eventually(t, func() error {
			live := 0
			for _, holders := range w.claims() {
				for _, h := range holders {
					if h.UID == pod.UID {
						live++
					}
				}
			}
			if live != 1 {
				return fmt.Errorf("%+v, and the pod is %s", w.claims(), pod.UID)
			}
			return nil
		})
		_, err := w.create(w.airflow("production"), "y")
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			t.Error(got)
		}
	})

	t.Run("a Pending pod treated as dead", func(t *testing.T) {
		w := newWorld(t, "pending")
		w.mustCreate(w.airflow("alpha"), "x")
		w.age()
		_, err := w.create(w.airflow("production"), "y")
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			t.Error(got)
		}
		w.eventuallyHeld("x")
	})

	t.Run("a replayed request rejecting itself", func(t *testing.T) {
		w := newWorld(t, "replay")
		for _, uid := range []types.UID{"00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"} {
			answer, _, err := post(t, g, strings.NewReader(string(reviewOf(t, w.pod("x"), uid))))
			if err != nil || !answer.Allowed {
				t.Fatalf("%v: %+v", err, answer)
			}
		}
		other, _, err := post(t, g, strings.NewReader(string(reviewOf(t, w.pod("y"), "00000000-0000-0000-0000-00000000000c"))))
		if err != nil || other.Allowed || other.Result.Code != 409 || !strings.HasSuffix(other.Result.Message, "[InFlight]") {
			t.Errorf("%v: %+v", err, other)
		}
	})

	t.Run("a claim orphaned for ever when a quota rejected the pod", func(t *testing.T) {
		w := newWorld(t, "quota")
		quota := &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "none"},
			Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
		}
		if err := w.admin.Create(t.Context(), quota); err != nil {
			t.Fatal(err)
		}
		alpha, production := w.airflow("alpha"), w.airflow("production")
		rejected := func(err error) error {
			if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota") {
				return nil
			}
			return fmt.Errorf("not rejected by the quota: %w", err)
		}
		fixture.Eventually(t, func() error { return rejected(alpha.Create(t.Context(), w.pod("x"), client.DryRunAll)) })
		_, err := w.create(alpha, "x")
		if err := rejected(err); err != nil {
			t.Fatal(err)
		}
		_, err = w.create(production, "y")
		if got := reasonIn(err); got != "409 Conflict InFlight" {
			t.Errorf("while x could still come: %s", got)
		}
		w.age()
		w.eventuallyHeld()
		if err := w.admin.Delete(t.Context(), quota); err != nil {
			t.Fatal(err)
		}
		fixture.Eventually(t, func() error {
			_, err := w.create(production, "y")
			return err
		})
	})

	t.Run("the object blocking its own update", func(t *testing.T) {
		w := newWorld(t, "update-own")
		pod := w.mustCreate(w.airflow("alpha"), "x run_id-")
		for _, run := range []string{`"r"`, "null", `"r"`} { // a task pod, none, and one again
			if err := w.admin.Patch(t.Context(), pod, merge(fmt.Sprintf(`{"metadata":{"labels":{"run_id":%s}}}`, run))); err != nil {
				t.Fatalf("run_id %s: %v", run, err)
			}
		}
		w.eventuallyHeld("x")
	})

	t.Run("a claim edited into garbage", func(t *testing.T) {
		w := newWorld(t, "garbage")
		pod := w.mustCreate(w.airflow("alpha"), "x")
		lease := w.leaseOf(pod)
		lease.Annotations, lease.Labels = map[string]string{"solepod.io/holders": "{{{"}, nil
		if err := w.admin.Update(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		_, err := w.create(w.airflow("production"), "y")
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			t.Error(got)
		}
		w.eventuallyHeld("", "x") // an unknown one, for as long as it may be in flight
		w.age()
		w.eventuallyHeld("x")
	})

	t.Run("a claim deleted by hand", func(t *testing.T) {
		w := newWorld(t, "deleted")
		pod := w.mustCreate(w.airflow("alpha"), "x")
		for range 2 { // the first time, news of the pod may bring it back
			if err := w.admin.Delete(t.Context(), w.leaseOf(pod)); err != nil {
				t.Fatal(err)
			}
			_, err := w.create(w.airflow("production"), "y")
			if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
				t.Error(got)
			}
			w.eventuallyHeld("x")
		}
	})
}

func TestClaimsFollowTheirPods(t *testing.T) {
	shared.Run(t, plane)

	t.Run("deletion", func(t *testing.T) {
		w := newWorld(t, "follow-deletion")
		w.delete(w.mustCreate(w.airflow("alpha"), "x"))
		w.eventuallyHeld()
	})
	t.Run("already_checked", func(t *testing.T) {
		w := newWorld(t, "follow-checked")
		pod := w.mustCreate(w.airflow("alpha"), "x")
		if err := w.admin.Patch(t.Context(), pod, merge(`{"metadata":{"labels":{"already_checked":"True"}}}`)); err != nil {
			t.Fatal(err)
		}
		w.eventuallyHeld()
	})
	t.Run("one of two tries", func(t *testing.T) {
		w := newWorld(t, "follow-tries")
		first := w.mustCreate(w.airflow("alpha"), "x")
		w.mustCreate(w.airflow("alpha"), "y try_number=2")
		w.mustHold("x", "y")
		w.delete(first)
		w.eventuallyHeld("y")
	})
	t.Run("eviction", func(t *testing.T) {
		w := newWorld(t, "follow-eviction")
		pod := w.mustCreate(w.airflow("alpha"), "x run")
		if err := w.admin.SubResource("eviction").Create(t.Context(), pod, &policyv1.Eviction{}); err != nil {
			t.Fatal(err)
		}
		w.eventuallyHeld()
	})
	t.Run("deletion of the namespace", func(t *testing.T) {
		w := newWorld(t, "follow-namespace")
		for i := range 10 {
			w.mustCreate(w.airflow("alpha"), fmt.Sprintf("x-%d run_id=%d", i, i))
		}
		if err := w.admin.Delete(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.jobs}}); err != nil {
			t.Fatal(err)
		}
		w.eventuallyHeld()
	})
}

// When solepod starts, it reads all pods, and repairs the claims of changes while it was
// down.
func TestFullResync(t *testing.T) {
	w := newWorld(t, "resync")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	older := w.mustCreate(alpha, "older run_id=older") // than solepod

	g := shared.Own(t, plane, solepod.Options{})
	w.eventuallyHeld("older")
	w.mustCreate(alpha, "stays run_id=stays")
	goes := w.mustCreate(alpha, "goes run_id=goes")
	checked := w.mustCreate(alpha, "checked run_id=checked")

	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.delete(goes)
	if err := w.admin.Patch(t.Context(), checked, merge(`{"metadata":{"labels":{"already_checked":"True"}}}`)); err != nil {
		t.Fatal(err)
	}
	// A duplicate is created as soon as the API server no longer calls solepod.
	fixture.Eventually(t, func() error {
		_, err := w.create(production, "slipped-in run_id=older")
		return err
	})
	w.mustHold("checked", "goes", "older", "stays")

	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.age()
	w.eventuallyHeld("older", "slipped-in", "stays")
	w.delete(older)
	w.eventuallyHeld("slipped-in", "stays")
}

func TestControlPlaneRestart(t *testing.T) {
	shared.Own(t, plane, solepod.Options{})
	w := newWorld(t, "restart")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	gone := w.mustCreate(alpha, "gone run_id=gone")
	w.mustCreate(alpha, "x")
	if err := plane.Restart(); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		_, err := w.create(production, "y")
		if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
			return err
		}
		return nil
	})
	w.mustHold("gone", "x")
	w.delete(gone)
	w.eventuallyHeld("x")
	w.mustCreate(production, "z run_id=z")
	w.mustHold("x", "z")
}
