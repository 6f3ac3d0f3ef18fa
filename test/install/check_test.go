package install

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/solepod/solepod/pkg/check"
	"github.com/solepod/solepod/test/fixture"
)

// results are those of the real command.
func (c *cluster) results(flags string) (map[string]check.Result, error) {
	out, err := c.sh(c.t.Context(), "solepod check -o json "+flags+" || [ $? = 1 ]")
	if err != nil {
		return nil, err
	}
	var list struct {
		Checks []check.Result `json:"checks"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	byName := map[string]check.Result{}
	for _, r := range list.Checks {
		byName[r.Name] = r
	}
	return byName, nil
}

// The check of each fault finds it, and is ok before the fault and after its repair.
// These faults need a real cluster; pkg/check tests all others.
func TestCheckFindsFaults(t *testing.T) {
	c := newCluster(t)
	c.install("")
	c.green()
	for _, fault := range []struct {
		name, inject, mend string
		check              string
		status             check.Status
	}{
		{
			"a rule is edited", `kubectl patch validatingwebhookconfiguration solepod --type=json -p='[{"op":"replace","path":"/webhooks/0/rules/0/operations","value":["UPDATE"]}]'`, upgrade,
			"guard", check.Failed,
		},
		{
			"failurePolicy Ignore", "helm upgrade solepod manifests/chart --namespace solepod-system --wait --set failurePolicy=Ignore", upgrade,
			"failure-policy", check.Warning,
		},
		{
			"a permission is missing", `kubectl patch clusterrole solepod --type=json -p='[{"op":"remove","path":"/rules/0"}]'`, upgrade,
			"rbac", check.Failed,
		},
		{
			"one replica is down", `kubectl annotate -n solepod-system "$(kubectl get pods -n solepod-system -o jsonpath='pod/{.items[0].metadata.name}')" test.solepod.io/down=true`,
			`kubectl annotate -n solepod-system --all pods test.solepod.io/down-`,
			"replicas", check.Failed,
		},
		{
			"no replica is there", "kubectl scale -n solepod-system deployment solepod --replicas=0", upgrade,
			"endpoints", check.Failed,
		},
		{
			"the Secret is deleted", "kubectl delete secret -n solepod-system solepod-tls", upgrade,
			"certificate", check.Failed,
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			c := c.within(t)
			c.mustSh(fault.inject)
			fixture.Eventually(t, func() error {
				results, err := c.results("")
				if err != nil {
					return err
				}
				got := results[fault.check]
				if got.Status != fault.status || got.Cure == "" || got.Docs == "" {
					return fmt.Errorf("%+v", got)
				}
				t.Logf("%s: %s", got.Name, got.Detail)
				return nil
			})
			c.mustSh(fault.mend)
			c.green()
		})
	}
}

const upgrade = "helm upgrade solepod manifests/chart --namespace solepod-system --wait --force-conflicts --reset-values"
