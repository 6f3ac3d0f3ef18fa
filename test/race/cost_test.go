package race

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// requests is how many requests the API server has answered, by its own count,
// with a verb on a resource.
func requests(t *testing.T, verb, resource string) int {
	t.Helper()
	n, err := plane.Counted(t.Context(), "apiserver_request_total", map[string]string{"verb": verb, "resource": resource})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The cost of admissions, as the API server counts it: solepod is the only client. One
// Lease is created for each admitted pod and deleted after it, none for a denial or a
// dry run, and nothing is listed.
func TestCost(t *testing.T) {
	shared.Run(t, plane)
	clients := solepod.Airflows(t, plane, namespace)
	alpha, production := clients["alpha"], clients["production"]
	create := func(run string, n int, change func(int, *corev1.Pod)) {
		t.Helper()
		for _, pod := range taskPods(run, n, change) {
			if err := alpha.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Once through, so that the leader is at work and its caches are filled.
	create("cost-0", 1, nil)
	remove(t, podsOf(t, "cost-0"))
	solepod.NoClaims(t, plane)

	type cost struct{ lists, creates, deletes int }
	measure := func() (c cost) {
		for _, resource := range []string{"pods", "leases", "namespaces", "serviceaccounts"} {
			c.lists += requests(t, "LIST", resource)
		}
		c.creates, c.deletes = requests(t, "POST", "leases"), requests(t, "DELETE", "leases")
		return c
	}
	const n = 20
	before := measure()
	each := func(i int, pod *corev1.Pod) { pod.Labels["task_id"] = fmt.Sprint("task-", i) }
	create("cost", n, each)
	for _, pod := range taskPods("cost-denied", n, each) {
		pod.Labels["run_id"] = "cost"
		if err := production.Create(t.Context(), pod); err == nil {
			t.Fatal("a duplicate was admitted")
		}
	}
	create("cost-mapped", n, func(i int, pod *corev1.Pod) { pod.Labels["map_index"] = fmt.Sprint(i) })
	after := measure()
	if before.lists == 0 {
		t.Fatal("the API server does not count LISTs, not even this test's own")
	}
	if lists := after.lists - before.lists; lists != 0 {
		t.Errorf("%d LISTs", lists)
	}
	// The mapped pods share one mark.
	if creates := after.creates - before.creates; creates != n+n+1 {
		t.Errorf("%d Leases were created for %d pods, %d of them mapped", creates, n+n, n)
	}
	for _, run := range []string{"cost", "cost-mapped"} {
		remove(t, podsOf(t, run))
	}
	// Each claim goes with its pod; the mark expires later.
	want, deletes := n+n, 0
	fixture.Eventually(t, func() error {
		if deletes = measure().deletes - after.deletes; deletes < want {
			return fmt.Errorf("%d Leases were deleted", deletes)
		}
		return nil
	})
	if deletes != want {
		t.Errorf("%d Leases were deleted, want %d", deletes, want)
	}
}
