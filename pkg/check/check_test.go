package check

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/taskpod"
)

// outcome is the status and the detail of each check, by its name.
type outcome map[string]Result

// outcomeOf also checks that each problem, and nothing else, has a cure and a link to
// a section of docs/check.md.
func outcomeOf(t *testing.T, results []Result) outcome {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "check.md"))
	if err != nil {
		t.Fatal(err)
	}
	out := outcome{}
	for _, r := range results {
		red := r.Status == Warning || r.Status == Failed
		if (r.Cure != "") != red || (r.Docs != "") != red {
			t.Errorf("%s is %s, its cure is %q, its docs are %q", r.Name, r.Status, r.Cure, r.Docs)
		}
		page, anchor, _ := strings.Cut(r.Docs, "#")
		if red && (!strings.HasSuffix(page, "/docs/check.md") || !strings.Contains(string(content), "\n### "+anchor+"\n")) {
			t.Errorf("%s links to %s, which is not there", r.Name, r.Docs)
		}
		if r.Detail == "" || strings.Contains(r.Detail, "\n") {
			t.Errorf("the detail of %s is not a line: %q", r.Name, r.Detail)
		}
		out[r.Name] = r
	}
	return out
}

func (o outcome) statuses() map[string]Status {
	out := map[string]Status{}
	for name, r := range o {
		out[name] = r.Status
	}
	return out
}

// green is the outcome of a healthy cluster.
func green(t *testing.T, c *cluster) outcome {
	t.Helper()
	got := outcomeOf(t, c.run(t))
	for name, r := range got {
		if r.Status == Warning || r.Status == Failed {
			t.Errorf("%s is %s without a fault: %s", name, r.Status, r.Detail)
		}
	}
	if len(got) != len(checks(nil)) {
		t.Errorf("%d checks were done, want %d", len(got), len(checks(nil)))
	}
	return got
}

// What is shipped is healthy once a cluster runs it, wherever it is installed
// and whatever the label is called. Only certificates of cert-manager's are its
// own check's business.
func TestHealthy(t *testing.T) {
	for name, c := range map[string]struct{ manifest, namespace, label, skipped string }{
		"install.yaml":              {selfSigned, "solepod-system", "airflow-environment", "cert-manager"},
		"install-cert-manager.yaml": {certManager, "solepod-system", "airflow-environment", ""},
		"elsewhere":                 {selfSigned, "elsewhere", "team.example.com/environment", "cert-manager"},
	} {
		t.Run(name, func(t *testing.T) {
			got := green(t, newCluster(t, c.manifest, c.namespace, c.label))
			for name, r := range got {
				if (r.Status == Skipped) != (name == c.skipped) {
					t.Errorf("%s is %s: %s", name, r.Status, r.Detail)
				}
			}
			for name, detail := range map[string]string{
				"kubernetes": "v1.37.2", "deployment": "ghcr.io/solepod/solepod:v0.1.0", "replicas": "2 of 2", "spread": "2 nodes", "endpoints": "2",
				"webhooks":    "access.solepod.io, connect.solepod.io, declare.solepod.io, guard.solepod.io, owner.solepod.io, stamp.solepod.io",
				"certificate": "until 2026-11-24T15:00:00Z", "ca-bundle": "for solepod." + c.namespace + ".svc",
				"labels": "alpha, production", "declare": "pods by environment: alpha 1, production 1", "undeclared": "alpha, production",
				"stamp": "alpha in namespace airflow-alpha", "guard": "EnvironmentMismatch in namespace airflow-alpha",
				"leader": "solepod-1", "claims": "2",
			} {
				if got[name].Detail != detail {
					t.Errorf("%s says %q, want %q", name, got[name].Detail, detail)
				}
			}
		})
	}
}

type (
	mutating    = admissionregistrationv1.MutatingWebhookConfiguration
	validating  = admissionregistrationv1.ValidatingWebhookConfiguration
	certificate = cmapi.Certificate
)

func everything() []admissionregistrationv1.RuleWithOperations {
	all := []string{"*"}
	return []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.OperationAll},
		Rule:       admissionregistrationv1.Rule{APIGroups: all, APIVersions: all, Resources: []string{"*/*"}},
	}}
}

// policyEngine adds a validating webhook for everything, with a change.
func policyEngine(change func(*admissionregistrationv1.ValidatingWebhook)) fault {
	webhook := admissionregistrationv1.ValidatingWebhook{Name: "all.policy.example.com", Rules: everything(), TimeoutSeconds: ptr.To[int32](10)}
	change(&webhook)
	return add(&validating{ObjectMeta: metav1.ObjectMeta{Name: "policy"}, Webhooks: []admissionregistrationv1.ValidatingWebhook{webhook}})
}

// setting replaces a line of the configuration.
func setting(old, other string) fault {
	return edit(name, func(m *corev1.ConfigMap) {
		m.Data["config.yaml"] = strings.Replace(m.Data["config.yaml"], old, other, 1)
	})
}

// withoutRule removes what a ClusterRole and a Role say about a resource.
func withoutRule(resource string) fault {
	about := func(r rbacv1.PolicyRule) bool { return slices.Contains(r.Resources, resource) }
	return func(t *testing.T, c *cluster) {
		edit(name, func(r *rbacv1.ClusterRole) { r.Rules = slices.DeleteFunc(r.Rules, about) })(t, c)
		edit(name, func(r *rbacv1.Role) { r.Rules = slices.DeleteFunc(r.Rules, about) })(t, c)
	}
}

// mayPatchPods is what the chart grants for retries: Supersede and for reclaim.
func mayPatchPods() fault {
	return edit(name, func(r *rbacv1.ClusterRole) {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"patch", "delete"}})
	})
}

func arg(a string) fault {
	return edit(name, func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Args = append(d.Spec.Template.Spec.Containers[0].Args, a)
	})
}

func withoutCertSecret() fault {
	return edit(name, func(d *appsv1.Deployment) {
		args := &d.Spec.Template.Spec.Containers[0].Args
		*args = slices.DeleteFunc(*args, func(a string) bool { return strings.HasPrefix(a, "--cert-secret=") })
	})
}

// valid serves a certificate that is valid for a time, counted from now.
func valid(from, to time.Duration) fault {
	return func(t *testing.T, c *cluster) {
		serve(c.ca.chain(t, c.host(), now.Add(from), now.Add(to)))(t, c)
	}
}

func endpointsReady(ready *bool) fault {
	return edit(name, func(s *discoveryv1.EndpointSlice) {
		for i := range s.Endpoints {
			s.Endpoints[i].Conditions.Ready = ready
		}
	})
}

func forbid(requests ...string) fault {
	return func(_ *testing.T, c *cluster) { c.refused = requests }
}

func condition(conditions ...cmapi.CertificateCondition) fault {
	return edit(name, func(c *certificate) { c.Status.Conditions = conditions })
}

func namespaceWith(name string, set map[string]string) *corev1.Namespace {
	set[corev1.LabelMetadataName] = name
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: set}}
}

func stamped(environment string) *corev1.Pod {
	pod := taskPod("airflow-alpha", "stamped-"+environment)
	pod.Labels["airflow-environment"] = environment
	pod.Annotations = map[string]string{"solepod.io/environment": "stamped"}
	return pod
}

// declares gives a pod an environment that Airflow declares.
func declares(pod *corev1.Pod, environment string) *corev1.Pod {
	pod.Labels["airflow-environment"], pod.Labels["solepod.io/declared"] = environment, "v1"
	return pod
}

// own is a task pod of one task, with a label of its own.
func own(name, deployment string) *corev1.Pod {
	pod := taskPod("airflow-other", name)
	pod.Labels["run_id"], pod.Labels["deployment"], pod.Labels["airflow_version"] = "r", deployment, "2."+name
	return pod
}

// createdBy is a claim of a pod that a user has created.
func createdBy(name, namespace, user string) *coordinationv1.Lease {
	id := taskpod.Identity{Namespace: namespace, DAG: "d", Task: "t", RunLabel: "run_id", Run: name}
	lease := claimOf(claim.Name(id), "solepod-system", "", now)
	lease.Labels = map[string]string{"solepod.io/claim": "v1", "solepod.io/namespace": namespace, "dag_id": "d", "task_id": "t", "run_id": name}
	lease.Annotations["solepod.io/holders"] = fmt.Sprintf(`[{"pod":"x","requester":%q,"claimedAt":%q}]`, user, now.Format(time.RFC3339))
	return lease
}

func account(namespace, name string, labels map[string]string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
}

// all is every check that needs the configuration, with the same outcome.
func all(text string, others map[string]string) map[string]string {
	for _, name := range []string{"rbac", "webhooks", "foreign-webhooks", "labels", "requesters", "declare", "undeclared", "separation", "names", "stamp", "guard", "claims"} {
		others[name] = text
	}
	return others
}

// forbiddenScan is what fails if the cluster cannot be scanned.
func forbiddenScan(others map[string]string) map[string]string {
	for _, name := range []string{"requesters", "undeclared", "separation", "names", "claims"} {
		others[name] = "failed: forbidden"
	}
	return others
}

// faults are injected into a healthy cluster one case at a time. Each check
// that a case does not name keeps its status.
func faults() map[string]faultCase {
	const (
		noService = `failed: in namespace airflow-alpha: Internal error occurred: failed calling webhook`
		nothing   = "there is no Deployment"
	)
	ignore := admissionregistrationv1.Ignore
	return map[string]faultCase{
		// Cluster
		"an old API server": {
			inject: []fault{func(_ *testing.T, c *cluster) { c.version = "v1.33.9" }},
			want:   map[string]string{"kubernetes": "warning: v1.33.9"},
		},
		"the oldest API server that is tested with, of a provider": {
			inject: []fault{func(_ *testing.T, c *cluster) { c.version = "v1.34.0-gke.1" }},
			want:   map[string]string{"kubernetes": "ok: v1.34.0-gke.1"},
		},
		"a version that is none": {
			inject: []fault{func(_ *testing.T, c *cluster) { c.version = "unknown" }},
			want:   map[string]string{"kubernetes": "failed: unknown"},
		},

		// Deployment
		"the Deployment is deleted": {
			inject: []fault{remove[*appsv1.Deployment](name)},
			want: map[string]string{
				"deployment": "failed: there is no Deployment solepod-system/solepod", "replicas": "skipped: " + nothing,
				"certificate": "skipped: not found", "ca-bundle": "skipped: not found",
			},
		},
		"another version is installed": {
			inject: []fault{edit(name, func(d *appsv1.Deployment) { d.Labels["app.kubernetes.io/version"] = "v0.0.9" })},
			want:   map[string]string{"deployment": "warning: v0.0.9 is installed (ghcr.io/solepod/solepod:v0.1.0)"},
		},
		"one replica is down": {
			inject: []fault{
				edit(name, func(d *appsv1.Deployment) { d.Status.ReadyReplicas = 1 }),
				edit(name, func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = ptr.To(false) }),
			},
			want: map[string]string{"replicas": "failed: 1 of 2", "endpoints": "ok: 1"},
		},
		"no replica is there": {
			inject: []fault{
				edit(name, func(d *appsv1.Deployment) { d.Spec.Replicas, d.Status = ptr.To[int32](0), appsv1.DeploymentStatus{} }),
				remove[*corev1.Pod]("solepod-1"), remove[*corev1.Pod]("solepod-2"),
				edit(name, func(s *discoveryv1.EndpointSlice) { s.Endpoints = nil }),
			},
			want: map[string]string{
				"replicas": "failed: 0 of 0", "spread": "skipped: fewer than two", "endpoints": "failed: 0 of 0 are ready", "stamp": noService, "guard": noService,
			},
		},
		"no replica is there, and failurePolicy is Ignore": {
			inject: []fault{
				endpointsReady(ptr.To(false)),
				edit(name, func(m *mutating) { m.Webhooks[0].FailurePolicy = &ignore }),
				edit(name, func(v *validating) { v.Webhooks[0].FailurePolicy = &ignore }),
			},
			want: map[string]string{
				"failure-policy": "warning: guard.solepod.io and stamp.solepod.io", "endpoints": "failed: 0 of 2 are ready",
				"stamp": `failed: in namespace airflow-alpha, the pod got environment "", want "alpha"`, "guard": "failed: admitted in namespace airflow-alpha",
			},
		},
		"one replica only": {
			inject: []fault{
				edit(name, func(d *appsv1.Deployment) {
					d.Spec.Replicas, d.Status.ReadyReplicas, d.Status.UpdatedReplicas = ptr.To[int32](1), 1, 1
				}),
				remove[*corev1.Pod]("solepod-2"),
			},
			want: map[string]string{"replicas": "warning: 1 of 1", "spread": "skipped: fewer than two"},
		},
		"the number of replicas is left to the API server": {
			inject: []fault{edit(name, func(d *appsv1.Deployment) { d.Spec.Replicas = nil })},
			want:   map[string]string{"replicas": "warning: 1 of 1"},
		},
		"a rollout is stuck": {
			inject: []fault{edit(name, func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 })},
			want:   map[string]string{"replicas": "warning: 2 of 2 ready, 1 up"},
		},
		"all replicas are on one node": {
			inject: []fault{edit("solepod-2", func(p *corev1.Pod) { p.Spec.NodeName = "node-1" })},
			want:   map[string]string{"spread": "warning: same node"},
		},
		"the replica on the other node is leaving": {
			inject: []fault{
				edit("solepod-2", func(p *corev1.Pod) {
					p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: now}, []string{"example.com/x"}
				}),
			},
			want: map[string]string{"spread": "warning: same node"},
		},
		"a pod is not scheduled": {
			inject: []fault{edit("solepod-2", func(p *corev1.Pod) { p.Spec.NodeName = "" })},
			want:   map[string]string{"spread": "warning: same node"},
		},
		"a cluster of one node": {
			inject: []fault{edit("solepod-2", func(p *corev1.Pod) { p.Spec.NodeName = "node-1" }), remove[*corev1.Node]("node-2")},
			want:   map[string]string{"spread": "skipped: one node"},
		},
		"the ConfigMap is deleted": {
			inject: []fault{remove[*corev1.ConfigMap](name)},
			want:   all("skipped: configuration", map[string]string{"configuration": "failed: there is no ConfigMap solepod-system/solepod"}),
		},
		"a field of the configuration is misspelt": {
			inject: []fault{setting("enforcement:", "enforcment:")},
			want:   all("skipped: configuration", map[string]string{"configuration": `failed: unknown field "enforcment"`}),
		},
		"nothing is denied": {
			inject: []fault{setting("enforcement: Deny", "enforcement: Audit")},
			want:   map[string]string{"configuration": "warning: Audit", "guard": "skipped: Audit"},
		},
		"there are warnings only": {
			inject: []fault{setting("enforcement: Deny", "enforcement: Warn")},
			want:   map[string]string{"configuration": "warning: shows no warnings", "guard": "skipped: Warn"},
		},

		// RBAC
		"pods, namespaces and ServiceAccounts may not be read": {
			inject: []fault{withoutRule("pods")},
			want: map[string]string{"rbac": "failed: solepod-system/solepod may not get namespaces, get pods, get serviceaccounts, " +
				"list namespaces, list pods, list serviceaccounts, watch namespaces, watch pods, watch serviceaccounts"},
		},
		"no events may be created": {
			inject: []fault{withoutRule("events")},
			want:   map[string]string{"rbac": "failed: may not create events, patch events"},
		},
		"no Leases may be written": {
			inject: []fault{withoutRule("leases")},
			want:   map[string]string{"rbac": "failed: may not create leases, delete leases, get leases, list leases, update leases, watch leases"},
		},
		"the Secret may not be written": {
			inject: []fault{withoutRule("secrets")},
			want:   map[string]string{"rbac": "failed: may not get secrets, list secrets, update secrets, watch secrets"},
		},
		"the caBundle may not be written": {
			inject: []fault{withoutRule("mutatingwebhookconfigurations")},
			want: map[string]string{"rbac": "failed: may not get mutatingwebhookconfigurations, get validatingwebhookconfigurations, " +
				"list mutatingwebhookconfigurations, list validatingwebhookconfigurations, patch mutatingwebhookconfigurations, patch validatingwebhookconfigurations, " +
				"watch mutatingwebhookconfigurations, watch validatingwebhookconfigurations"},
		},
		"cert-manager's certificates need no permissions": {
			manifest: certManager,
			inject:   []fault{withoutRule("secrets"), withoutRule("mutatingwebhookconfigurations")},
		},
		"another Secret than the Role names": {
			inject: []fault{withoutCertSecret(), arg("--cert-secret=another")},
			want: map[string]string{
				"rbac":        "failed: may not get secrets, list secrets, update secrets, watch secrets",
				"certificate": "failed: there is no Secret solepod-system/another", "ca-bundle": "failed: there is no Secret solepod-system/another",
			},
		},
		"the roles are another ServiceAccount's": {
			inject: []fault{
				edit(name, func(b *rbacv1.RoleBinding) { b.Subjects[0].Name = "default" }),
				edit(name, func(b *rbacv1.ClusterRoleBinding) { b.Subjects[0].Namespace = "default" }),
			},
			want: map[string]string{"rbac": "failed: create events, create leases"},
		},
		"retries: Supersede without its permission": {
			inject: []fault{setting("retries: Allow", "retries: Supersede")},
			want:   map[string]string{"configuration": "ok: retries Supersede", "rbac": "failed: may not delete pods, patch pods"},
		},
		"retries: Supersede with its permission": {
			inject: []fault{setting("retries: Allow", "retries: Supersede"), mayPatchPods()},
		},
		"reclaim without its permission": {
			inject: []fault{arg("--reclaim-older-than=24h")},
			want:   map[string]string{"rbac": "failed: may not delete pods, patch pods"},
		},
		"reclaim with its permission": {
			inject: []fault{arg("--reclaim-older-than=24h"), mayPatchPods()},
		},

		// Webhooks
		"a webhook configuration is deleted": {
			inject: []fault{remove[*validating](name)},
			want: map[string]string{
				"webhooks": "failed: there is no ValidatingWebhookConfiguration solepod", "failure-policy": "skipped: guard.solepod.io",
				"ca-bundle": "skipped: ValidatingWebhookConfiguration", "stamp": "skipped: no guarded namespace", "guard": "skipped: no guarded namespace",
			},
		},
		"the other webhook configuration is deleted": {
			inject: []fault{remove[*mutating](name)},
			want: map[string]string{
				"webhooks": "failed: there is no MutatingWebhookConfiguration solepod", "failure-policy": "skipped: stamp.solepod.io",
				"ca-bundle": "skipped: MutatingWebhookConfiguration", "stamp": `failed: "", want "alpha"`,
			},
		},
		"both webhook configurations are deleted": {
			inject: []fault{remove[*validating](name), remove[*mutating](name)},
			want: map[string]string{
				"webhooks": "failed: there is no MutatingWebhookConfiguration and no ValidatingWebhookConfiguration solepod", "failure-policy": "skipped: guard.solepod.io",
				"ca-bundle": "skipped: MutatingWebhookConfiguration and no ValidatingWebhookConfiguration", "stamp": "skipped: no guarded namespace", "guard": "skipped: no guarded namespace",
			},
		},
		"injection and foreignAccess are off, and their webhooks not registered": {
			inject: []fault{
				setting("injection: Stamp", "injection: \"Off\""), setting("foreignAccess: Deny", "foreignAccess: \"Off\""),
				edit(name, func(m *mutating) { m.Webhooks = slices.Delete(m.Webhooks, 0, 1) }),
				edit(name, func(v *validating) { v.Webhooks = slices.Delete(v.Webhooks, 1, 3) }),
			},
			want: map[string]string{
				"webhooks": "ok: declare.solepod.io, guard.solepod.io", "configuration": "ok: injection Off", "stamp": "skipped: injection is Off", "failure-policy": "ok: Fail",
			},
		},
		"injection and foreignAccess are off in the configuration only": {
			inject: []fault{setting("injection: Stamp", "injection: \"Off\""), setting("foreignAccess: Deny", "foreignAccess: \"Off\"")},
			want:   map[string]string{"configuration": "ok: injection Off", "stamp": "skipped: injection is Off"},
		},
		"foreignAccess is off, and the wrong webhook not registered": {
			inject: []fault{
				setting("foreignAccess: Deny", "foreignAccess: \"Off\""),
				edit(name, func(m *mutating) { m.Webhooks = slices.Delete(m.Webhooks, 0, 1) }),
			},
			want: map[string]string{
				"webhooks": "failed: stamp.solepod.io is missing", "failure-policy": "skipped: stamp.solepod.io", "configuration": "ok: foreignAccess Off",
				"stamp": `failed: "", want "alpha"`,
			},
		},
		"the metrics are authorized without the permissions": {
			inject: []fault{arg("--metrics-authorization")},
			want:   map[string]string{"rbac": "failed: may not create subjectaccessreviews, create tokenreviews"},
		},
		"a policy engine is called for everything": {
			inject: []fault{policyEngine(func(*admissionregistrationv1.ValidatingWebhook) {})},
			want: map[string]string{
				"foreign-webhooks": "warning: called for the Leases in namespace solepod-system: all.policy.example.com of ValidatingWebhookConfiguration policy (timeout 10 s)",
			},
		},
		"a policy engine is called for Leases of solepod by name": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.Rules[0].APIGroups, w.Rules[0].APIVersions, w.Rules[0].Resources = []string{"coordination.k8s.io"}, []string{"v1beta1"}, []string{"leases"}
				w.Rules[0].Operations = []admissionregistrationv1.OperationType{admissionregistrationv1.Update}
				w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"dag_id": "x", "solepod.io/claim": "v1"}}
				w.MatchConditions = []admissionregistrationv1.MatchCondition{{Name: "x", Expression: "true"}}
			})},
			want: map[string]string{"foreign-webhooks": "warning: (timeout 10 s), unless its matchConditions exclude them"},
		},
		"a policy engine excludes the namespace": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"solepod-system"}},
				}}
			})},
			want: map[string]string{"foreign-webhooks": "ok: none of 1"},
		},
		"a policy engine selects namespaces by a label": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
			})},
			want: map[string]string{"foreign-webhooks": "ok: none of 1"},
		},
		"a policy engine is called for other objects": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.ObjectSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "solepod.io/claim", Operator: metav1.LabelSelectorOpDoesNotExist},
				}}
			})},
			want: map[string]string{"foreign-webhooks": "ok: none of 1"},
		},
		"a policy engine is called for other resources": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.Rules[0].Resources = []string{"pods", "leases/*"}
			})},
			want: map[string]string{"foreign-webhooks": "ok: none of 1"},
		},
		"a policy engine is called for another version, exactly": {
			inject: []fault{policyEngine(func(w *admissionregistrationv1.ValidatingWebhook) {
				w.Rules[0].APIVersions, w.MatchPolicy = []string{"v1beta1"}, ptr.To(admissionregistrationv1.Exact)
			})},
			want: map[string]string{"foreign-webhooks": "ok: none of 1"},
		},
		"a mutating webhook of others is called for everything": {
			inject: []fault{add(&mutating{
				ObjectMeta: metav1.ObjectMeta{Name: "defaults"},
				Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: "all.defaults.example.com", Rules: everything()}},
			})},
			want: map[string]string{"foreign-webhooks": "warning: all.defaults.example.com of MutatingWebhookConfiguration defaults"},
		},
		"a webhook of a configuration is deleted": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks = slices.Delete(v.Webhooks, 1, 2) })},
			want:   map[string]string{"webhooks": "failed: access.solepod.io is missing"},
		},
		"a webhook is added": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks = append(v.Webhooks, *v.Webhooks[1].DeepCopy())
				v.Webhooks[3].Name = "other.example.com"
			})},
			want: map[string]string{"webhooks": "failed: other.example.com is not a hook of solepod"},
		},
		"a rule is edited": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[0].Rules[0].Operations = []admissionregistrationv1.OperationType{admissionregistrationv1.Update}
			})},
			want: map[string]string{"webhooks": "failed: guard.solepod.io: unexpected rules", "guard": "failed: admitted in namespace airflow-alpha"},
		},
		"a rule of the other webhook is edited": {
			inject: []fault{edit(name, func(m *mutating) { m.Webhooks[0].Rules[0].Resources = []string{"jobs"} })},
			want: map[string]string{
				"webhooks": "failed: stamp.solepod.io: unexpected rules", "stamp": `failed: in namespace airflow-alpha, the pod got environment "", want "alpha"`,
			},
		},
		"a field is removed": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks[0].MatchConditions = nil })},
			want:   map[string]string{"webhooks": "failed: guard.solepod.io: unexpected matchConditions"},
		},
		"a field is added": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[2].ObjectSelector.MatchLabels = map[string]string{"x": "y"}
			})},
			want: map[string]string{"webhooks": "failed: connect.solepod.io has objectSelector"},
		},
		"a webhook goes to another path": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks[0].ClientConfig.Service.Path = ptr.To("/access") })},
			want: map[string]string{
				"webhooks": "failed: guard.solepod.io: unexpected clientConfig", "guard": "failed: admitted",
			},
		},
		"a webhook goes to the namespace of another installation": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks[1].ClientConfig.Service.Namespace = "elsewhere" })},
			want:   map[string]string{"webhooks": "failed: access.solepod.io: unexpected clientConfig"},
		},
		"a webhook goes to a URL": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[1].ClientConfig.Service, v.Webhooks[1].ClientConfig.URL = nil, ptr.To("https://example.com/access")
			})},
			want: map[string]string{"webhooks": "failed: access.solepod.io: unexpected clientConfig"},
		},
		"the namespace is not excluded": {
			inject: []fault{edit(name, func(m *mutating) { m.Webhooks[0].NamespaceSelector = &metav1.LabelSelector{} })},
			want:   map[string]string{"webhooks": "failed: stamp.solepod.io does not exclude namespace solepod-system"},
		},
		"another namespace is excluded": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[2].NamespaceSelector.MatchExpressions[0].Values = []string{"kube-system"}
			})},
			want: map[string]string{"webhooks": "failed: connect.solepod.io does not exclude namespace solepod-system"},
		},
		"the namespace alone is not excluded": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[2].NamespaceSelector.MatchExpressions[0].Operator = metav1.LabelSelectorOpIn
			})},
			want: map[string]string{"webhooks": "failed: connect.solepod.io does not exclude namespace solepod-system"},
		},
		"what is the administrator's to choose": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[0].TimeoutSeconds = ptr.To[int32](10)
				v.Webhooks[0].NamespaceSelector.MatchExpressions[0].Values = []string{"solepod-system", "kube-system", "vault"}
				v.Webhooks[1].FailurePolicy = ptr.To(admissionregistrationv1.Fail)
			})},
		},
		"failurePolicy Ignore": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks[0].FailurePolicy = &ignore })},
			want:   map[string]string{"failure-policy": "warning: failurePolicy of guard.solepod.io is Ignore"},
		},
		"failurePolicy Ignore of the other webhook": {
			inject: []fault{edit(name, func(m *mutating) { m.Webhooks[0].FailurePolicy = &ignore })},
			want:   map[string]string{"failure-policy": "warning: failurePolicy of stamp.solepod.io is Ignore"},
		},
		"no endpoint is ready": {
			inject: []fault{endpointsReady(ptr.To(false))},
			want:   map[string]string{"endpoints": "failed: 0 of 2 are ready", "stamp": noService, "guard": noService},
		},
		"whether endpoints are ready is not known": {
			inject: []fault{endpointsReady(nil)},
			want:   map[string]string{"endpoints": "ok: 2"},
		},
		"the endpoints are another Service's": {
			inject: []fault{edit(name, func(s *discoveryv1.EndpointSlice) { s.Labels[discoveryv1.LabelServiceName] = "other" })},
			want:   map[string]string{"endpoints": "failed: 0 of 0 are ready", "stamp": noService, "guard": noService},
		},

		// Certificates
		"the Secret is deleted": {
			inject: []fault{remove[*corev1.Secret]("solepod-tls")},
			want: map[string]string{
				"certificate": "failed: there is no Secret solepod-system/solepod-tls", "ca-bundle": "failed: there is no Secret solepod-system/solepod-tls",
			},
		},
		"the Secret is empty": {
			inject: []fault{serve(nil)},
			want: map[string]string{
				"certificate": "failed: tls.crt of Secret solepod-system/solepod-tls", "ca-bundle": "failed: tls.crt of Secret solepod-system/solepod-tls",
			},
		},
		"the Secret has no certificate": {
			inject: []fault{serve([]byte("garbage"))},
			want: map[string]string{
				"certificate": "failed: tls.crt of Secret solepod-system/solepod-tls", "ca-bundle": "failed: tls.crt of Secret solepod-system/solepod-tls",
			},
		},
		"the Deployment names no Secret": {
			inject: []fault{withoutCertSecret()},
			want:   map[string]string{"certificate": "skipped: names no Secret", "ca-bundle": "skipped: names no Secret"},
		},
		"an expired certificate": {
			inject: []fault{valid(-time.Hour, 0)},
			want:   map[string]string{"certificate": "failed: solepod-tls expired at 2026-11-24T12:00:00Z"},
		},
		"an expired certificate in the Secret of cert-manager": {
			manifest: certManager,
			inject:   []fault{valid(-time.Hour, -time.Second)},
			want:     map[string]string{"certificate": "failed: solepod-tls expired at 2026-11-24T11:59:59Z"},
		},
		"a certificate of the future": {
			inject: []fault{valid(time.Second, time.Hour)},
			want:   map[string]string{"certificate": "failed: is valid from 2026-11-24T12:00:01Z"},
		},
		"a certificate that expires soon": {
			inject: []fault{valid(-3*time.Hour-time.Second, time.Hour)},
			want:   map[string]string{"certificate": "warning: expires at 2026-11-24T13:00:00Z"},
		},
		"a quarter of the certificate's life is left": {
			inject: []fault{valid(-3*time.Hour, time.Hour)},
			want:   map[string]string{"certificate": "ok: until 2026-11-24T13:00:00Z"},
		},
		"a certificate by another CA": {
			inject: []fault{func(t *testing.T, c *cluster) {
				other := newAuthority(t, nil)
				serve(other.chain(t, c.host(), now, now.Add(time.Hour)))(t, c)
			}},
			want: map[string]string{"ca-bundle": "failed: access.solepod.io: x509: certificate signed by unknown authority"},
		},
		"a certificate for another name": {
			inject: []fault{func(t *testing.T, c *cluster) {
				serve(c.ca.chain(t, "solepod.elsewhere.svc", now, now.Add(time.Hour)))(t, c)
			}},
			want: map[string]string{"ca-bundle": "failed: guard.solepod.io: x509: certificate is valid for solepod.elsewhere.svc, not solepod.solepod-system.svc"},
		},
		"a certificate by an intermediate CA": {
			inject: []fault{func(t *testing.T, c *cluster) {
				below := newAuthority(t, &c.ca)
				serve(below.chain(t, c.host(), now, now.Add(time.Hour)))(t, c)
			}},
			want: map[string]string{"certificate": "ok: until 2026-11-24T13:00:00Z"},
		},
		"the intermediate CA's certificate is not served": {
			inject: []fault{func(t *testing.T, c *cluster) {
				below := newAuthority(t, &c.ca)
				chain := below.chain(t, c.host(), now, now.Add(time.Hour))
				serve(chain[:strings.Index(string(chain), "-----END CERTIFICATE-----\n")+len("-----END CERTIFICATE-----\n")])(t, c)
			}},
			want: map[string]string{"ca-bundle": "failed: stamp.solepod.io: x509: certificate signed by unknown authority"},
		},
		"one webhook has no caBundle": {
			inject: []fault{edit(name, func(v *validating) { v.Webhooks[2].ClientConfig.CABundle = nil })},
			want:   map[string]string{"ca-bundle": "failed: connect.solepod.io has no caBundle"},
		},
		"a caBundle without a certificate": {
			inject: []fault{edit(name, func(m *mutating) { m.Webhooks[0].ClientConfig.CABundle = []byte("garbage") })},
			want:   map[string]string{"ca-bundle": "failed: stamp.solepod.io: x509: certificate signed by unknown authority"},
		},
		"cert-manager did not issue the certificate": {
			manifest: certManager,
			inject: []fault{condition(
				cmapi.CertificateCondition{Type: cmapi.CertificateConditionIssuing, Status: cmmeta.ConditionTrue},
				cmapi.CertificateCondition{Type: cmapi.CertificateConditionReady, Status: cmmeta.ConditionFalse, Message: "Issuer not found"},
			)},
			want: map[string]string{"cert-manager": "failed: solepod-system/solepod is not ready: Issuer not found"},
		},
		"cert-manager does not run": {
			manifest: certManager,
			inject:   []fault{condition()},
			want:     map[string]string{"cert-manager": "failed: solepod-system/solepod"},
		},
		"another Certificate of cert-manager": {
			manifest: certManager,
			inject:   []fault{remove[*certificate](name)},
			want:     map[string]string{"cert-manager": "skipped: cert-manager does not issue"},
		},

		// Environments
		"a misspelt label": {
			inject: []fault{edit("airflow-production", func(n *corev1.Namespace) {
				delete(n.Labels, "airflow-environment")
				n.Labels["airflow-environments"] = "production"
			})},
			want: map[string]string{"labels": "warning: Namespace airflow-production has the label airflow-environments, which resembles airflow-environment", "declare": "warning: pod airflow-production/scheduler: neither"},
		},
		"a misspelt label of a ServiceAccount": {
			inject: []fault{add(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
				Namespace: "airflow-alpha", Name: "worker", Labels: map[string]string{"airflow_environment": "alpha"},
			}})},
			want: map[string]string{"labels": "warning: ServiceAccount airflow-alpha/worker has the label airflow_environment, which resembles airflow-environment"},
		},
		"a label of a ServiceAccount": {
			inject: []fault{add(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
				Namespace: "airflow-alpha", Name: "worker", Labels: map[string]string{"airflow-environment": "gamma"},
			}})},
			want: map[string]string{"labels": "ok: alpha, gamma, production"},
		},
		"a label without a value": {
			inject: []fault{add(namespaceWith("airflow-other", map[string]string{"airflow-environment": ""}))},
			want:   map[string]string{"labels": "warning: airflow-environment of Namespace airflow-other is empty"},
		},
		"a value in another case": {
			inject: []fault{add(namespaceWith("airflow-other", map[string]string{"airflow-environment": "Alpha"}))},
			want:   map[string]string{"labels": "warning: Alpha and alpha are two different environments"},
		},
		"a value in another case in the configuration": {
			inject: []fault{setting("onError:", "environments: [{name: pro-duction, users: [jane]}, {name: al-pha}]\nonError:")},
			want:   map[string]string{"labels": "warning: pro-duction and production are two different environments"},
		},
		"nothing is labelled": {
			inject: []fault{
				edit("airflow-alpha", func(n *corev1.Namespace) { delete(n.Labels, "airflow-environment") }),
				edit("airflow-production", func(n *corev1.Namespace) { delete(n.Labels, "airflow-environment") }),
			},
			want: map[string]string{
				"labels": "warning: has the label airflow-environment", "declare": "warning: neither its ServiceAccount nor its namespace", "stamp": "skipped: no guarded namespace", "guard": "skipped: no guarded namespace",
			},
		},
		"no namespace opts in": {
			inject: []fault{
				edit("airflow-alpha", func(n *corev1.Namespace) { delete(n.Labels, "solepod.io/declare") }),
				edit("airflow-production", func(n *corev1.Namespace) { n.Labels["solepod.io/declare"] = "disabled" }),
			},
			want: map[string]string{"declare": "skipped: no namespace has the label solepod.io/declare=enabled"},
		},
		"Airflow started before": {
			inject: []fault{add(airflowPod("airflow-alpha", "worker", ""))},
			want:   map[string]string{"declare": "warning: pod airflow-alpha/worker started before it could declare: kubectl rollout restart --namespace airflow-alpha deployment airflow-worker"},
		},
		"Airflow with a StatefulSet started before": {
			inject: []fault{add(func() *corev1.Pod {
				pod := airflowPod("airflow-alpha", "worker", "")
				pod.OwnerReferences[0].Kind, pod.OwnerReferences[0].Name = "StatefulSet", "airflow-worker"
				return pod
			}())},
			want: map[string]string{"declare": "warning: kubectl rollout restart --namespace airflow-alpha statefulset airflow-worker"},
		},
		"Airflow declares another environment": {
			inject: []fault{add(airflowPod("airflow-alpha", "worker", declare.Source("airflow-environment", "beta")))},
			want:   map[string]string{"declare": "warning: pod airflow-alpha/worker declares another environment, or by another version of solepod: kubectl rollout restart"},
		},
		"a volume on Airflow's home": {
			inject: []fault{add(func() *corev1.Pod {
				pod := airflowPod("airflow-alpha", "worker", "")
				pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: "/opt/airflow"}}
				return pod
			}())},
			want: map[string]string{"declare": "warning: pod airflow-alpha/worker: container worker: volume own is mounted on the plugins folder /opt/airflow/plugins"},
		},
		"Airflow opts out": {
			inject: []fault{add(func() *corev1.Pod {
				pod := airflowPod("airflow-alpha", "worker", "")
				pod.Labels["solepod.io/declare"] = "disabled"
				return pod
			}())},
		},
		"Airflow without an environment": {
			inject: []fault{add(
				namespaceWith("airflow-other", map[string]string{"solepod.io/declare": "enabled"}), airflowPod("airflow-other", "worker", ""),
			)},
			want: map[string]string{"declare": "warning: pod airflow-other/worker: neither its ServiceAccount nor its namespace has the label airflow-environment"},
		},
		"pods that declare nothing": {
			inject: []fault{remove[*corev1.Pod]("alpha"), add(stamped("alpha")), edit("claim-alpha", func(l *coordinationv1.Lease) {
				l.Annotations = claimOf("", "", stamped("alpha").UID, now).Annotations
			})},
			want: map[string]string{"undeclared": "warning: no pod of environment alpha declares it"},
		},
		"a pod that declares nothing beside one that does": {
			inject: []fault{add(stamped("alpha"))},
		},
		"pods of no environment": {
			inject: []fault{add(taskPod("airflow-other", "one"), taskPod("airflow-other", "two"))},
			want:   map[string]string{"undeclared": "warning: 2 task pods in namespace airflow-other"},
		},
		"pods that a label of their own separates": {
			inject: []fault{add(own("a", "alpha"), own("b", "production"))},
			want: map[string]string{
				"separation": "warning: pods that collide have different values of the label deployment",
				"undeclared": "warning: 2 task pods in namespace airflow-other",
			},
		},
		"pods that no label separates": {
			inject: []fault{add(own("a", "alpha"), own("b", "alpha"))},
			want:   map[string]string{"separation": "ok: no label", "undeclared": "warning: 2 task pods in namespace airflow-other"},
		},
		"an environment that is guessed": {
			inject: []fault{add(createdBy("claim-x", "airflow-alpha", "system:serviceaccount:default:airflow"))},
			want:   map[string]string{"requesters": "warning: system:serviceaccount:default:airflow has no environment and creates task pods in namespace airflow-alpha: the environment alpha is a guess"},
		},
		"a user that is no ServiceAccount": {
			inject: []fault{add(createdBy("claim-x", "airflow-alpha", "jane"))},
		},
		"a namespace without an environment": {
			inject: []fault{add(createdBy("claim-x", "airflow-other", "system:serviceaccount:default:airflow"))},
		},
		"a release in two environments": {
			inject: []fault{add(
				account("airflow-alpha", "worker", map[string]string{"release": "airflow"}),
				account("airflow-alpha", "triggerer", map[string]string{"release": "airflow", "airflow-environment": "beta"}),
				account("airflow-alpha", "other", map[string]string{"release": "other", "airflow-environment": "beta"}),
			)},
			want: map[string]string{"requesters": "warning: the release airflow in namespace airflow-alpha belongs to several environments: ServiceAccount worker to alpha, ServiceAccount triggerer to beta"},
		},
		"a fixed name in a shared namespace": {
			inject: []fault{add(
				declares(taskPod("jobs", "export"), "alpha"), declares(taskPod("jobs", "import-0a1b2c3d"), "production"),
				declares(taskPod("airflow-other", "alone"), "alpha"),
			)},
			want: map[string]string{"names": "warning: 1 task pod with a fixed name, where environments share a namespace, for example pod jobs/export, environment alpha"},
		},
		"random names in a shared namespace": {
			inject: []fault{add(
				declares(taskPod("jobs", "export-x9y8z7w6"), "alpha"), declares(taskPod("jobs", "export.0123456789abcdef0123456789abcdef"), "production"),
			)},
		},
		"no task pods": {
			inject: []fault{
				remove[*corev1.Pod]("alpha"), remove[*corev1.Pod]("production"), remove[*coordinationv1.Lease]("claim-alpha"), remove[*coordinationv1.Lease]("claim-production"),
			},
			want: map[string]string{"undeclared": "skipped: no task pods", "names": "skipped: no task pods", "claims": "ok: 0"},
		},

		// Operation
		"injection Off": {
			inject: []fault{setting("injection: Stamp", `injection: "Off"`)},
			want:   map[string]string{"stamp": "skipped: injection is Off"},
		},
		"injection Require": {
			inject: []fault{setting("injection: Stamp", "injection: Require")},
			want:   map[string]string{"stamp": "ok: denied in namespace airflow-alpha"},
		},
		"injection Require, but nothing is denied": {
			inject: []fault{
				setting("injection: Stamp", "injection: Require"),
				edit(name, func(v *validating) { v.Webhooks[0].Rules = nil }),
			},
			want: map[string]string{
				"webhooks": "failed: guard.solepod.io: unexpected rules", "stamp": `failed: "", want "alpha"`, "guard": "failed: admitted",
			},
		},
		"a quota denies the pods": {
			inject: []fault{func(_ *testing.T, c *cluster) { c.denial = podDenial("exceeded quota: pods") }},
			want: map[string]string{
				"stamp": "failed: exceeded quota", "guard": "failed: exceeded quota",
			},
		},
		"a quota denies the pods with injection Require": {
			inject: []fault{
				setting("injection: Stamp", "injection: Require"),
				func(_ *testing.T, c *cluster) { c.denial = podDenial("exceeded quota: pods") },
			},
			want: map[string]string{"stamp": "failed: exceeded quota", "guard": "failed: exceeded quota"},
		},
		"the namespaces with a label are not guarded": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[0].NamespaceSelector.MatchExpressions[0].Values = []string{"solepod-system", "airflow-alpha", "airflow-production"}
			})},
			want: map[string]string{"stamp": "skipped: no guarded namespace", "guard": "skipped: no guarded namespace"},
		},
		"the first namespace is not guarded": {
			inject: []fault{edit(name, func(v *validating) {
				v.Webhooks[0].NamespaceSelector.MatchExpressions[0].Values = []string{"solepod-system", "airflow-alpha"}
			})},
			want: map[string]string{"stamp": "ok: production in namespace airflow-production", "guard": "ok: in namespace airflow-production"},
		},
		"the first namespace is being deleted": {
			inject: []fault{edit("airflow-alpha", func(n *corev1.Namespace) {
				n.DeletionTimestamp, n.Finalizers = &metav1.Time{Time: now}, []string{"kubernetes"}
			})},
			want: map[string]string{"stamp": "ok: production in namespace airflow-production", "guard": "ok: in namespace airflow-production"},
		},
		"there is no leader": {
			inject: []fault{remove[*coordinationv1.Lease](name)},
			want:   map[string]string{"leader": "failed: there is no Lease solepod-system/solepod"},
		},
		"the leader has resigned": {
			inject: []fault{edit(name, func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = ptr.To("") })},
			want:   map[string]string{"leader": "failed: solepod-system/solepod"},
		},
		"the Lease was never held": {
			inject: []fault{edit(name, func(l *coordinationv1.Lease) { l.Spec = coordinationv1.LeaseSpec{} })},
			want:   map[string]string{"leader": "failed: solepod-system/solepod"},
		},
		"the leader is gone": {
			inject: []fault{edit(name, func(l *coordinationv1.Lease) { l.Spec.RenewTime.Time = now.Add(-61 * time.Second) })},
			want:   map[string]string{"leader": "failed: solepod-1_uid renewed the Lease solepod-system/solepod 1m1s ago"},
		},
		"a claim that cannot be read": {
			inject: []fault{add(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
				Namespace: "solepod-system", Name: "garbage", Labels: map[string]string{"solepod.io/claim": "v1"}, Annotations: map[string]string{"solepod.io/holders": "{"},
			}})},
			want: map[string]string{"claims": "warning: 1 of 3 cannot be read, for example garbage"},
		},
		"a claim whose pod is gone for long": {
			inject: []fault{add(claimOf("left", "solepod-system", "gone", now.Add(-121*time.Second)))},
			want:   map[string]string{"claims": "warning: 1 of 3 have no pod, for example left"},
		},
		"a claim whose pod has just gone": {
			inject: []fault{add(claimOf("left", "solepod-system", "gone", now.Add(-119*time.Second)))},
			want:   map[string]string{"claims": "ok: 3"},
		},

		// A check without its permissions fails.
		"nodes may not be listed":            {inject: []fault{forbid("list Node")}, want: map[string]string{"spread": "failed: forbidden"}},
		"ServiceAccounts may not be listed":  {inject: []fault{forbid("list ServiceAccount")}, want: forbiddenScan(map[string]string{"labels": "failed: forbidden"})},
		"EndpointSlices may not be listed":   {inject: []fault{forbid("list EndpointSlice")}, want: map[string]string{"endpoints": "failed: forbidden"}},
		"the Lease may not be read":          {inject: []fault{forbid("get Lease")}, want: map[string]string{"leader": "failed: forbidden"}},
		"Leases may not be listed":           {inject: []fault{forbid("list Lease")}, want: forbiddenScan(map[string]string{})},
		"permissions may not be asked about": {inject: []fault{forbid("create SubjectAccessReview")}, want: map[string]string{"rbac": "failed: forbidden"}},
		"Certificates may not be read": {
			manifest: certManager, inject: []fault{forbid("get Certificate")}, want: map[string]string{"cert-manager": "failed: forbidden"},
		},
		"the Secret may not be read": {
			inject: []fault{forbid("get Secret")}, want: map[string]string{"certificate": "failed: forbidden", "ca-bundle": "failed: forbidden"},
		},
		"pods may not be created": {
			inject: []fault{forbid("create Pod")}, want: map[string]string{"stamp": "failed: forbidden", "guard": "failed: forbidden"},
		},
		"pods may not be listed": {
			inject: []fault{forbid("list Pod")},
			want:   forbiddenScan(map[string]string{"spread": "failed: forbidden", "declare": "failed: forbidden"}),
		},
		"namespaces may not be listed": {
			inject: []fault{forbid("list Namespace")},
			want:   forbiddenScan(map[string]string{"labels": "failed: forbidden", "declare": "failed: forbidden", "stamp": "failed: forbidden", "guard": "failed: forbidden"}),
		},
		"the ConfigMap may not be read": {
			inject: []fault{forbid("get ConfigMap")},
			want:   all("failed: forbidden", map[string]string{"configuration": "failed: forbidden"}),
		},
		// The checks of certificates are skipped, with the reason.
		"the Deployment may not be read": {
			inject: []fault{forbid("get Deployment")},
			want: map[string]string{
				"deployment": "failed: forbidden", "replicas": "failed: forbidden", "rbac": "failed: forbidden",
				"certificate": "skipped: forbidden", "ca-bundle": "skipped: forbidden",
			},
		},
		"a webhook configuration may not be read": {
			inject: []fault{forbid("get MutatingWebhookConfiguration")},
			want: map[string]string{
				"webhooks": "failed: forbidden", "failure-policy": "failed: forbidden", "ca-bundle": "failed: forbidden",
				"stamp": "failed: forbidden", "guard": "failed: forbidden",
			},
		},
		"the other webhook configuration may not be read": {
			inject: []fault{forbid("get ValidatingWebhookConfiguration")},
			want: map[string]string{
				"webhooks": "failed: forbidden", "failure-policy": "failed: forbidden", "ca-bundle": "failed: forbidden",
				"stamp": "failed: forbidden", "guard": "failed: forbidden",
			},
		},
	}
}

type faultCase struct {
	manifest string // selfSigned, unless another is named
	inject   []fault
	// want is the status of each check that the fault changes, a colon, and a
	// part of its detail.
	want map[string]string
}

// Each fault is found by the checks that are for it, and by no other.
func TestFaults(t *testing.T) {
	healthy := map[string]map[string]Status{}
	for _, manifest := range []string{selfSigned, certManager} {
		healthy[manifest] = green(t, newCluster(t, manifest, "solepod-system", "airflow-environment")).statuses()
	}
	red := map[string]bool{}
	for name, c := range faults() {
		for check, text := range c.want {
			if strings.HasPrefix(text, string(Warning)) || strings.HasPrefix(text, string(Failed)) {
				red[check] = true
			}
		}
		t.Run(name, func(t *testing.T) {
			manifest := c.manifest
			if manifest == "" {
				manifest = selfSigned
			}
			cluster := newCluster(t, manifest, "solepod-system", "airflow-environment")
			want := maps.Clone(healthy[manifest])
			for _, inject := range c.inject {
				inject(t, cluster)
			}
			got := outcomeOf(t, cluster.run(t))
			for check, text := range c.want {
				status, detail, _ := strings.Cut(text, ": ")
				want[check] = Status(status)
				if !strings.Contains(got[check].Detail, detail) {
					t.Errorf("%s says %q, want %q in it", check, got[check].Detail, detail)
				}
			}
			if diff := cmp.Diff(want, got.statuses()); diff != "" {
				t.Errorf("- want, + got:\n%s", diff)
				for _, check := range slices.Sorted(maps.Keys(got)) {
					t.Logf("%s %s: %s", check, got[check].Status, got[check].Detail)
				}
			}
		})
	}
	for _, c := range checks(nil) {
		if !red[c.name] {
			t.Errorf("no fault makes %s red", c.name)
		}
	}
}

// An API server that does not answer is not healthy in any respect.
func TestSilence(t *testing.T) {
	c := newCluster(t, certManager, "solepod-system", "airflow-environment")
	c.silent = true
	for name, r := range outcomeOf(t, c.run(t)) {
		want := Failed
		if name == "certificate" || name == "ca-bundle" {
			want = Skipped // the Deployment names the Secret
		}
		if r.Status != want || !strings.Contains(r.Detail, "deadline exceeded") {
			t.Errorf("%s is %s: %s", name, r.Status, r.Detail)
		}
	}
}
