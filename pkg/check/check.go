// Package check diagnoses an installation of solepod. Checks are data: a
// description, a cure and a function. They change nothing; they create pods as a dry
// run only.
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
	Warning Status = "warning" // it works, but not in all cases, or not for long
	Failed  Status = "failed"
	Skipped Status = "skipped" // the check does not apply
)

// Result is the result of a check.
type Result struct {
	Category string `json:"category"`
	// Name is the anchor of the check in docs/check.md.
	Name        string `json:"name"`
	Description string `json:"description"`
	Status      Status `json:"status"`
	// Detail is the finding, in one line.
	Detail string `json:"detail,omitempty"`
	// Cure is what to do, and Docs is the address of the check's section in the
	// documentation. Both are empty unless the status is Warning or Failed.
	Cure string `json:"cure,omitempty"`
	Docs string `json:"docs,omitempty"`
}

// Installation is the installation to check.
type Installation struct {
	// Client is uncached, and has the permissions of an administrator.
	Client client.Client
	// KubernetesVersion returns the version of the API server.
	KubernetesVersion func() (string, error)
	// Namespace is where solepod is installed.
	Namespace string
	// Version is the version of this program.
	Version string
	// Now returns the time that certificates and Leases are compared with.
	Now func() time.Time
}

// finding is the part of a Result that depends on the installation.
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

// check is a check. run returns an error if the check itself has failed, for example
// because an object could not be read.
type check struct {
	category, name, description string
	cure                        string
	run                         func(*Installation, context.Context) (finding, error)
}

const docs = "https://github.com/solepod/solepod/blob/main/docs/check.md#"

// checks are sorted so that a fault comes before the faults that it causes.
func checks(scan func() (scan, error)) []check {
	const (
		cluster      = "Cluster"
		deployment   = "Deployment"
		hooks        = "Webhooks"
		certificates = "Certificates"
		environments = "Environments"
		operation    = "Operation"
		upgrade      = "Install the chart or install.yaml of this version again."
	)
	return []check{
		{cluster, "kubernetes", "the API server responds, and solepod is tested with its version",
			"Use a cluster with Kubernetes 1.34 or newer: set --kubeconfig, --context or KUBECONFIG.", (*Installation).kubernetes},
		{deployment, "deployment", "solepod is installed, with the version of this program",
			"Install the chart (docs/install.md). If it is in another namespace, set --system-namespace. If it has another version, use the solepod command of that version.", (*Installation).deployment},
		{deployment, "replicas", "all replicas are ready, and there is more than one",
			"Read kubectl describe pods and kubectl logs with -l app.kubernetes.io/name=solepod. To run more replicas, set the chart value replicas.", (*Installation).replicas},
		{deployment, "spread", "the replicas run on different nodes",
			"Free resources on another node, then run: kubectl rollout restart deployment solepod.", (*Installation).spread},
		{deployment, "configuration", "the configuration is valid, and enforcement is Deny",
			"Correct the field in the chart value config. With enforcement Warn or Audit, solepod denies nothing. Use them during the introduction only.", (*Installation).configuration},
		{deployment, "rbac", "solepod has the permissions that it needs",
			upgrade, configured((*Installation).rbac)},
		{hooks, "webhooks", "both webhook configurations exist, and are those of this version",
			upgrade + " Do not edit the webhook configurations.", configured((*Installation).webhooks)},
		{hooks, "failure-policy", "task pods are denied, not admitted, if no replica responds",
			"Set the chart value failurePolicy to Fail after the introduction.", (*Installation).failurePolicy},
		{hooks, "endpoints", "the Service has ready endpoints",
			"See the check replicas. The Service must select app.kubernetes.io/name=solepod.", (*Installation).endpoints},
		{hooks, "foreign-webhooks", "no webhook of others is called for claims",
			"Exclude solepod's namespace, or Leases, from that webhook, for example by a namespaceSelector with kubernetes.io/metadata.name NotIn. The create of each task pod writes a Lease, and waits for it.", configured((*Installation).foreign)},
		{certificates, "certificate", "the serving certificate is valid for more than a quarter of its life",
			"SelfSigned: search the log of the leader for \"certificates\". CertManager: read kubectl describe certificate. Provided: put a new certificate into the Secret.", (*Installation).certificate},
		{certificates, "ca-bundle", "the caBundle of each webhook verifies the serving certificate",
			"SelfSigned: the leader repairs it within seconds; otherwise, its log has the cause. CertManager: check that its cainjector runs. Provided: set the chart value certificates.caBundle.", (*Installation).caBundle},
		{certificates, "cert-manager", "the Certificate of cert-manager is ready",
			"Read kubectl describe certificate solepod, and the troubleshooting guide of cert-manager.", (*Installation).certManager},
		{environments, "labels", "labels name the environments, without typing errors",
			"Label the namespace, or the ServiceAccount, of each Airflow: kubectl label namespace NAMESPACE airflow-environment=NAME. Remove misspelt labels.", configured((*Installation).labels)},
		{environments, "requesters", "each Airflow has one environment of its own",
			"Label the namespace of each Airflow, or all of its ServiceAccounts, with the same environment: kubectl label serviceaccount --namespace NAMESPACE NAME airflow-environment=ENVIRONMENT.", configured(requesters(scan))},
		{environments, "declare", "pods of Airflow declare their environment, in namespaces with solepod.io/declare=enabled",
			"Restart the pods that started before. For the others, see docs/environments.md.", configured((*Installation).declares)},
		{environments, "undeclared", "task pods declare their environment",
			"Label the namespace of each Airflow with solepod.io/declare=enabled and restart Airflow (docs/environments.md). Only then can its tasks run at the same time as those of another environment.", configured(scanned(scan, undeclared))},
		{environments, "separation", "no label of your own separates the pods that collide",
			"If it is the name of the Airflow, set environmentLabel to that key (docs/environments.md).", configured(separation(scan))},
		{environments, "names", "task pods of different environments have different names",
			"Leave random_name_suffix of the operator at True, which is the default, or give the pods of each environment another name.", configured(scanned(scan, fixedNames))},
		{operation, "stamp", "a new task pod gets its environment (a dry run)",
			"See the checks webhooks, endpoints and ca-bundle, then the logs of solepod and of the API server.", configured((*Installation).stamp)},
		{operation, "guard", "a task pod with an empty environment label is denied (a dry run)",
			"See the checks webhooks, endpoints and ca-bundle, then the logs of solepod and of the API server.", configured((*Installation).guard)},
		{operation, "leader", "a replica is the leader",
			"Only the leader deletes claims and renews certificates. Search the logs of solepod for \"leader\".", (*Installation).leader},
		{operation, "claims", "claims are deleted with their pods",
			"The leader deletes claims without pods; search its log for \"claim\". Such claims do no harm: they count for 60 s.", configured(scanned(scan, claims))},
	}
}

// Run runs all checks in sequence.
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
			found = failed("the check failed to run: %v", err)
		}
		r := Result{Category: c.category, Name: c.name, Description: c.description, Status: found.status, Detail: found.detail}
		if r.Status == Warning || r.Status == Failed {
			r.Cure, r.Docs = c.cure, docs+c.name
		}
		results = append(results, r)
	}
	return Results{results}
}
