// Package check finds out what is wrong with an installation of solepod, and
// says how to mend it. Checks are data: what each says, where its cure is
// described, and the function that looks. Nothing is changed; the one create is
// a dry run.
package check

import (
	"context"
	"fmt"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Status of a check.
type Status string

// The values of Status.
const (
	OK      Status = "ok"
	Warning Status = "warning" // it works, but not for long, or not for all
	Failed  Status = "failed"
	Skipped Status = "skipped" // there is nothing to look at
)

// Result is what a check has found.
type Result struct {
	Category string `json:"category"`
	// Name is the anchor of the check in docs/check.md.
	Name        string `json:"name"`
	Description string `json:"description"`
	Status      Status `json:"status"`
	// Detail is what was found, in one line.
	Detail string `json:"detail,omitempty"`
	// Cure says how to mend it, and Docs is where to read more. They are empty
	// where nothing is to be mended.
	Cure string `json:"cure,omitempty"`
	Docs string `json:"docs,omitempty"`
}

// Installation is what is checked.
type Installation struct {
	// Client is an administrator's, uncached.
	Client client.Client
	// KubernetesVersion asks the API server for its version.
	KubernetesVersion func() (string, error)
	// Namespace is where solepod is installed.
	Namespace string
	// Version is that of this program.
	Version string
	// Now is the time to compare certificates and Leases with.
	Now func() time.Time
}

// finding is a result without what the check says anyway.
type finding struct {
	status Status
	detail string
}

func ok(format string, args ...any) finding { return finding{OK, fmt.Sprintf(format, args...)} }
func warning(format string, args ...any) finding {
	return finding{Warning, fmt.Sprintf(format, args...)}
}
func failed(format string, args ...any) finding { return finding{Failed, fmt.Sprintf(format, args...)} }
func skipped(format string, args ...any) finding {
	return finding{Skipped, fmt.Sprintf(format, args...)}
}

// check is one. An error of run is of the check itself: what it looks at could
// not be read.
type check struct {
	category, name, description string
	cure                        string
	run                         func(*Installation, context.Context) (finding, error)
}

const docs = "https://github.com/solepod/solepod/blob/main/docs/check.md#"

// checks are in the order in which one fault explains the next.
func checks(scan func() (scan, error)) []check {
	const (
		cluster      = "Cluster"
		deployment   = "Deployment"
		hooks        = "Webhooks"
		certificates = "Certificates"
		environments = "Environments"
		operation    = "Operation"
		upgrade      = "Install the chart, or install.yaml, of this version again."
	)
	return []check{
		{cluster, "kubernetes", "the API server answers, and is of a version that solepod is tested with",
			"Set --kubeconfig or KUBECONFIG to a cluster of Kubernetes 1.34 or newer.", (*Installation).kubernetes},
		{deployment, "deployment", "solepod is installed, in the version of this program",
			"Install the chart (docs/install.md), give --namespace if it is elsewhere, or use the solepod of its version.", (*Installation).deployment},
		{deployment, "replicas", "all replicas are ready, and there is more than one",
			"See why with: kubectl describe pods and kubectl logs, of the label app.kubernetes.io/name=solepod. For more of them, set replicas.", (*Installation).replicas},
		{deployment, "spread", "the replicas run on different nodes",
			"Make room on another node, then: kubectl rollout restart deployment solepod.", (*Installation).spread},
		{deployment, "configuration", "the configuration can be read, and denies",
			"Correct the field in the values of the chart (config). Enforcement Warn and Audit deny nothing, which is meant for the time of introduction.", (*Installation).configuration},
		{deployment, "rbac", "solepod may do what it must",
			upgrade, configured((*Installation).rbac)},
		{hooks, "webhooks", "both webhook configurations are there, as this version ships them",
			upgrade + " Do not edit them by hand.", configured((*Installation).webhooks)},
		{hooks, "failure-policy", "task pods are denied, not let through, when no replica answers",
			"Set failurePolicy to Fail, once solepod has proved itself.", (*Installation).failurePolicy},
		{hooks, "endpoints", "the Service has endpoints that are ready",
			"See the check of the replicas; the Service must select app.kubernetes.io/name=solepod.", (*Installation).endpoints},
		{certificates, "certificate", "the serving certificate is valid for more than a quarter of its life",
			"SelfSigned: see the leader's log for \"certificates\". CertManager: see kubectl describe certificate. Provided: put a new one into the Secret.", (*Installation).certificate},
		{certificates, "ca-bundle", "the caBundle of each webhook verifies the serving certificate",
			"SelfSigned: the leader mends it within seconds, its log tells why not. CertManager: see that its cainjector runs. Provided: set certificates.caBundle.", (*Installation).caBundle},
		{certificates, "cert-manager", "the Certificate of cert-manager is ready",
			"See kubectl describe certificate solepod, and cert-manager's guide to troubleshooting.", (*Installation).certManager},
		{environments, "labels", "environments are named by labels, without typing errors",
			"Label the namespace, or the ServiceAccount, of each Airflow: kubectl label namespace NAMESPACE airflow-environment=NAME. Remove what is misspelt.", configured((*Installation).labels)},
		{environments, "undeclared", "the task pods of environments declare them",
			"Let each Airflow declare its environment by a cluster policy (docs/environments.md): only then can its tasks run beside another's.", configured(scanned(scan, undeclared))},
		{operation, "stamp", "a task pod gets its environment (a dry run)",
			"See the checks of webhooks, endpoints and certificates; then the logs of solepod and of the API server.", configured((*Installation).stamp)},
		{operation, "guard", "a task pod of a wrong environment is denied (a dry run)",
			"See the checks of webhooks, endpoints and certificates; then the logs of solepod and of the API server.", configured((*Installation).guard)},
		{operation, "leader", "a replica leads",
			"Only the leader cleans up claims and renews certificates. See the logs of solepod for \"leader\".", (*Installation).leader},
		{operation, "claims", "claims go away with their pods",
			"The leader drops claims without pods; see its log for \"claim\". Claims do no harm: they count for 60 s after their last pod.", configured(scanned(scan, claims))},
	}
}

// Run does all checks, one after the other.
func (i *Installation) Run(ctx context.Context) Results {
	// Two checks share one scan, which lists all task pods. They run only with a
	// valid configuration.
	scan := sync.OnceValues(func() (s scan, err error) {
		settings, _, err := i.settings(ctx)
		if err != nil {
			return s, err
		}
		return i.scan(ctx, settings)
	})
	var results []Result
	for _, c := range checks(scan) {
		found, err := c.run(i, ctx)
		if err != nil {
			found = failed("it can not be checked: %v", err)
		}
		r := Result{Category: c.category, Name: c.name, Description: c.description, Status: found.status, Detail: found.detail}
		if r.Status == Warning || r.Status == Failed {
			r.Cure, r.Docs = c.cure, docs+c.name
		}
		results = append(results, r)
	}
	return Results{results}
}
