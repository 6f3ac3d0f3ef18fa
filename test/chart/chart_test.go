package chart_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/test/chart"
)

// The defaults of the chart are those of the program.
func TestDefaults(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", chart.Path, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		Config map[string]any `json:"config"`
	}
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	values.Config["apiVersion"], values.Config["kind"] = config.APIVersion, config.Kind
	if content, err = yaml.Marshal(values.Config); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Default(), got); diff != "" {
		t.Errorf("the chart's configuration (+) is not the default (-):\n%s", diff)
	}
}

func TestRender(t *testing.T) {
	const serviceMonitor = "kind: ServiceMonitor"
	tests := map[string]struct {
		values []string
		has    []string
		lacks  []string
	}{
		"defaults": {
			has:   []string{"--cert-secret=solepod-tls", "resourceNames: [solepod-tls]", "failurePolicy: Fail", "ghcr.io/solepod/solepod:v0.1.0", "system-cluster-critical"},
			lacks: []string{"verbs: [patch, delete]", serviceMonitor, "cert-manager.io", "--cert-dir", "Egress"},
		},
		"only Supersede may delete pods":      {values: []string{"config.retries=Supersede"}, has: []string{"verbs: [patch, delete]"}},
		"off is no boolean":                   {values: []string{"config.injection=Off"}, has: []string{`injection: "Off"`}},
		"another label":                       {values: []string{"config.environmentLabel=team/env"}, has: []string{"{key: team/env, operator: DoesNotExist}"}, lacks: []string{"airflow-environment"}},
		"fail open":                           {values: []string{"failurePolicy=Ignore"}, lacks: []string{"failurePolicy: Fail"}},
		"cert-manager":                        {values: []string{"certificates.mode=CertManager"}, has: []string{"cert-manager.io/inject-ca-from: solepod-system/solepod", "kind: Certificate", "name: solepod-self-signed"}, lacks: []string{"secrets", "--cert-secret"}},
		"cert-manager, your own issuer":       {values: []string{"certificates.mode=CertManager", "certificates.issuerRef.kind=ClusterIssuer", "certificates.issuerRef.name=corporate"}, has: []string{"kind: ClusterIssuer"}, lacks: []string{"selfSigned"}},
		"your own certificate":                {values: []string{"certificates.mode=Provided", "certificates.caBundle=PEM"}, has: []string{"--cert-dir=", "caBundle: UEVN"}, lacks: []string{"--cert-secret", "kind: Secret\n"}},
		"an image by its digest":              {values: []string{"image.digest=sha256:" + strings.Repeat("0", 64)}, has: []string{"solepod@sha256:000"}},
		"client certificates":                 {values: []string{"clientCA.configMapName=api-ca", "clientCA.allowedNames={kube-apiserver}"}, has: []string{"--client-ca-file=", "--client-allowed-names=kube-apiserver", "name: api-ca"}},
		"monitoring":                          {values: []string{"metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "metrics.dashboard.enabled=true"}, has: []string{serviceMonitor, "kind: PrometheusRule", "$labels.environment", "solepod.json"}},
		"a few namespaces":                    {values: []string{"namespaceExpressions[0].key=team", "namespaceExpressions[0].operator=Exists"}, has: []string{"key: team"}},
		"egress to the API server only":       {values: []string{"networkPolicy.egressPorts={6443}"}, has: []string{"- Egress", "- port: 6443"}},
		"foreignAccess is Off":                {values: []string{"config.foreignAccess=Off"}, has: []string{"guard.solepod.io", "stamp.solepod.io"}, lacks: []string{"access.solepod.io", "connect.solepod.io", "path: /access"}},
		"foreignAccess is off as YAML has it": {values: []string{"config.foreignAccess=false"}, has: []string{"guard.solepod.io"}, lacks: []string{"access.solepod.io", "connect.solepod.io"}},
		"injection is Off":                    {values: []string{"config.injection=Off"}, has: []string{"declare.solepod.io", "access.solepod.io", "connect.solepod.io"}, lacks: []string{"stamp.solepod.io", "owner.solepod.io", "path: /stamp"}},
		"injection is Require":                {values: []string{"config.injection=Require", "config.foreignAccess=Audit"}, has: []string{"stamp.solepod.io", "access.solepod.io", "connect.solepod.io"}},
		"a tenth of the memory is left":       {has: []string{"--memory-limit=$(MEMORY_LIMIT)", "resource: limits.memory"}, lacks: []string{"GOMEMLIMIT", "--metrics-authorization", "tokenreviews"}},
		"metrics for those who may read them": {
			values: []string{"metrics.authorization=true", "metrics.serviceMonitor.enabled=true"},
			has:    []string{"--metrics-authorization", "tokenreviews", "subjectaccessreviews", "name: solepod-metrics", "scheme: https", "serverName: solepod.solepod-system.svc", "key: tls.crt"},
		},
		"metrics with another CA": {
			values: []string{"metrics.authorization=true", "metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.tlsConfig.insecureSkipVerify=true"},
			has:    []string{"insecureSkipVerify: true"}, lacks: []string{"key: tls.crt"},
		},
		"runbooks of this version": {
			values: []string{"metrics.prometheusRule.enabled=true"},
			has:    []string{"runbook_url: https://github.com/solepod/solepod/blob/v0.1.0/docs/operations.md#solepodslow"}, lacks: []string{"/blob/main/"},
		},
		"no extras": {values: []string{"networkPolicy.enabled=false", "flowSchema.enabled=false", "podDisruptionBudget.enabled=false", "priorityClassName="}, lacks: []string{"NetworkPolicy", "FlowSchema", "PodDisruptionBudget", "ResourceQuota"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := chart.Render(t.Context(), test.values...)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range test.has {
				if !strings.Contains(string(out), text) {
					t.Errorf("no %q in\n%s", text, out)
				}
			}
			for _, text := range test.lacks {
				if strings.Contains(string(out), text) {
					t.Errorf("there is %q in\n%s", text, out)
				}
			}
		})
	}
}

func TestRenderErrors(t *testing.T) {
	tests := map[string]struct{ value, want string }{
		"unknown value":            {"replica=3", "replica"},
		"unknown field of config":  {"config.enforcment=Deny", "enforcment"},
		"a label of solepod's own": {"config.environmentLabel=solepod.io/claim", "/config/environmentLabel"},
		"not one of":               {"config.enforcement=Maybe", "/config/enforcement"},
		"no CA of yours":           {"certificates.mode=Provided", "certificates.caBundle is empty"},
		"unknown certificate mode": {"certificates.mode=Magic", "/certificates/mode"},
		"no replicas":              {"replicas=0", "/replicas"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := chart.Render(t.Context(), test.value)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
