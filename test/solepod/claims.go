package solepod

import (
	"fmt"
	"regexp"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
)

// Airflows returns the clients of Airflow alpha and production, by environment,
// for a test whose pods are in podNamespace.
func Airflows(t testing.TB, plane *controlplane.ControlPlane, podNamespace string) map[string]client.Client {
	t.Helper()
	clients, err := plane.Airflows(t.Context(), podNamespace)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// PodsOf returns the pods of a run that exist now.
func PodsOf(t testing.TB, plane *controlplane.ControlPlane, namespace, run string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := plane.Admin.List(t.Context(), &list, client.InNamespace(namespace), client.MatchingLabels{"run_id": run}); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// Claims returns the claims that exist now, or those of them that options select.
func Claims(t testing.TB, plane *controlplane.ControlPlane, options ...client.ListOption) []coordinationv1.Lease {
	t.Helper()
	var list coordinationv1.LeaseList
	options = append([]client.ListOption{client.InNamespace(Namespace), client.HasLabels{claim.Label}}, options...)
	if err := plane.Admin.List(t.Context(), &list, options...); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// AgeClaims makes each claim an old one, so that no test waits until a holder
// without a pod has expired. The length of that time is tested where the clock
// is a parameter, in pkg/claim.
func AgeClaims(t testing.TB, plane *controlplane.ControlPlane, options ...client.ListOption) {
	t.Helper()
	const holders = "solepod.io/holders"
	claimedAt := regexp.MustCompile(`"claimedAt":"[^"]*"`)
	fixture.Eventually(t, func() error { // solepod may write the same claims
		for _, lease := range Claims(t, plane, options...) {
			aged := claimedAt.ReplaceAllLiteralString(lease.Annotations[holders], `"claimedAt":"2001-01-01T00:00:00Z"`)
			if aged == lease.Annotations[holders] {
				continue
			}
			lease.Annotations[holders] = aged
			if err := plane.Admin.Update(t.Context(), &lease); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		return nil
	})
}

// NoClaims waits until solepod has deleted all claims. The pods that they are
// for must be deleted; holders whose pods were never created are aged.
func NoClaims(t testing.TB, plane *controlplane.ControlPlane) {
	t.Helper()
	fixture.Eventually(t, func() error {
		AgeClaims(t, plane)
		if left := Claims(t, plane); len(left) > 0 {
			return fmt.Errorf("%d claims are left, the first is %+v", len(left), left[0])
		}
		return nil
	})
}
