package install

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/check"
	"github.com/solepod/solepod/test/chart"
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

// Each fault is found by the check that is for it, which is green before and,
// when the fault is mended, after.
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
			"a webhook configuration is deleted", "kubectl delete validatingwebhookconfiguration solepod", upgrade,
			"webhooks", check.Failed,
		},
		{
			"a webhook of a configuration is deleted", `kubectl patch validatingwebhookconfiguration solepod --type=json -p='[{"op":"remove","path":"/webhooks/1"}]'`, upgrade,
			"webhooks", check.Failed,
		},
		{
			"a rule is edited", `kubectl patch validatingwebhookconfiguration solepod --type=json -p='[{"op":"replace","path":"/webhooks/0/rules/0/operations","value":["UPDATE"]}]'`, upgrade,
			"guard", check.Failed,
		},
		{
			"the namespace is not excluded", `kubectl patch mutatingwebhookconfiguration solepod --type=json -p='[{"op":"remove","path":"/webhooks/0/namespaceSelector"}]'`, upgrade,
			"webhooks", check.Failed,
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
			"one replica only", "helm upgrade solepod manifests/chart --namespace solepod-system --wait --set replicas=1", upgrade,
			"replicas", check.Warning,
		},
		{
			"a field of the configuration is misspelt", `kubectl patch -n solepod-system configmap solepod -p '{"data":{"config.yaml":"apiVersion: solepod.io/v1alpha1\nkind: Configuration\nenforcment: Deny\n"}}'`, upgrade,
			"configuration", check.Failed,
		},
		{
			"nothing is denied", "helm upgrade solepod manifests/chart --namespace solepod-system --wait --set config.enforcement=Audit", upgrade,
			"configuration", check.Warning,
		},
		{
			"a misspelt label", "kubectl label namespace airflow-production airflow-environment- airflow-environments=production", "kubectl label namespace airflow-production airflow-environments- airflow-environment=production",
			"labels", check.Warning,
		},
		{
			"a value in another case", "kubectl create namespace airflow-other && kubectl label namespace airflow-other airflow-environment=Alpha", "kubectl delete namespace airflow-other",
			"labels", check.Warning,
		},
		{
			"pods that declare nothing", podOf("undeclared", ""), "kubectl delete pod -n airflow-alpha --force undeclared",
			"undeclared", check.Warning,
		},
		{
			"a claim that nobody can read", `kubectl create -f - <<X
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: garbage, namespace: solepod-system, labels: {solepod.io/claim: v1}, annotations: {solepod.io/holders: "{"}}}
X`, "kubectl delete lease -n solepod-system --ignore-not-found garbage",
			"claims", check.Warning,
		},
		{
			"another version is installed", "kubectl label --overwrite -n solepod-system deployment solepod app.kubernetes.io/version=v0.0.9", upgrade,
			"deployment", check.Warning,
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

// podOf is the command that creates a task pod with further labels.
func podOf(name, labels string) string {
	return `kubectl create -f - <<X
{apiVersion: v1, kind: Pod, metadata: {namespace: airflow-alpha, name: ` + name + `, labels: {kubernetes_pod_operator: "True", dag_id: d, task_id: t, run_id: ` + name + labels + `}}, spec: {containers: [{name: base, image: x}]}}
X`
}

// Where certificates are one's own, nobody mends them.
func TestCheckFindsBadCertificates(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	secret := func(name string) string {
		return "cd " + dir + " && kubectl create secret tls solepod-tls --namespace solepod-system --dry-run=client -o yaml " + pair(t, dir, name) + " | kubectl apply -f -"
	}
	const host = "solepod.solepod-system.svc"
	c.mustSh("kubectl create namespace solepod-system")
	c.mustSh(secret(host))
	c.install("--set certificates.mode=Provided --set-file certificates.caBundle=" + dir + "/ca.crt")
	c.green()
	at := func(now time.Time) map[string]check.Status {
		got := map[string]check.Status{}
		for _, r := range installation(t, now).Run(context.WithoutCancel(t.Context())) {
			got[r.Name] = r.Status
		}
		return got
	}
	// It lives for a year.
	if got := at(time.Now().AddDate(2, 0, 0))["certificate"]; got != check.Failed {
		t.Errorf("an expired certificate: %s", got)
	}
	if got := at(time.Now().AddDate(0, 11, 0))["certificate"]; got != check.Warning {
		t.Errorf("a certificate that expires soon: %s", got)
	}
	if got := at(time.Now().AddDate(-1, 0, 0))["certificate"]; got != check.Failed {
		t.Errorf("a certificate of the future: %s", got)
	}
	for fault, name := range map[string]string{"by another CA": host, "for another name": "solepod.elsewhere.svc"} {
		c.mustSh(secret(name))
		results, err := c.results("")
		if err != nil {
			t.Fatal(err)
		}
		if got := results["ca-bundle"]; got.Status != check.Failed {
			t.Errorf("a certificate %s: %+v", fault, got)
		}
	}
	if results, err := c.results("--namespace elsewhere"); err != nil || results["deployment"].Status != check.Failed {
		t.Errorf("in a namespace without solepod: %+v %v", results["deployment"], err)
	}
	if out, err := c.sh(t.Context(), "KUBECONFIG=/nowhere solepod check"); err == nil || !strings.Contains(out, "--kubeconfig") {
		t.Errorf("without a cluster: %v %s", err, out)
	}
}

// installation is the control plane's, at another time.
func installation(t *testing.T, now time.Time) *check.Installation {
	t.Helper()
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	if err := cmapi.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(plane.Config, client.Options{Scheme: types})
	if err != nil {
		t.Fatal(err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	return &check.Installation{
		Client: c, Namespace: namespace, Version: chart.Version, Now: func() time.Time { return now },
		KubernetesVersion: func() (string, error) {
			info, err := d.ServerVersion()
			return info.String(), err
		},
	}
}
