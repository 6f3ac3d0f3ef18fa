package webhook

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/tools/events"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/taskpod"
)

// declarer is the mutating hook that makes Airflow's own pods declare their
// environment. It never denies a pod: a pod of Airflow must not wait for solepod,
// and without the file its task pods are stamped.
type declarer struct {
	reviewer
	label  string
	events events.EventRecorder
	pods   *prometheus.CounterVec
}

// Outcomes of the hook, as the metric has them.
const (
	declareInjected = "injected"
	declareNone     = "none"    // no container runs Airflow, or all have the file
	declareSkipped  = "skipped" // Airflow, but it cannot be injected
)

// Handle implements admission.Handler.
func (d *declarer) Handle(ctx context.Context, req admission.Request) admission.Response {
	if !isPod(req) || req.Operation != admissionv1.Create {
		return admission.Allowed("")
	}
	patches, outcome, problem := d.handle(ctx, req)
	d.pods.WithLabelValues(outcome).Inc()
	if problem != "" {
		problem = oneLine(problem)
		ctrllog.FromContext(ctx).Info("A pod of Airflow does not declare its environment", "generateName", shorten(podName(req)), "problem", problem)
		if !isDryRun(req) {
			d.events.Eventf(
				&corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: req.Namespace}, nil,
				corev1.EventTypeWarning, "NotDeclared", "Inject", "%s", problem,
			)
		}
	}
	return admission.Patched("", patches...)
}

// handle returns only "add" operations.
func (d *declarer) handle(ctx context.Context, req admission.Request) (patches []jsonpatch.JsonPatchOperation, outcome, problem string) {
	pod, err := declare.Decode(req.Object.Raw)
	if err != nil {
		return nil, declareSkipped, fmt.Sprintf("pod %s: %v", podName(req), err)
	}
	// Astronomer's chart gives the workers of the KubernetesExecutor the value False.
	if pod.Metadata.Labels[taskpod.LabelOperator] == taskpod.True || pod.Metadata.Labels[taskpod.LabelDeclare] == declare.Disabled {
		return nil, declareNone, ""
	}
	if !pod.RunsAirflow() {
		return nil, declareNone, ""
	}
	who := "pod " + cmp.Or(pod.Metadata.Name, pod.Metadata.GenerateName)
	environment, err := d.environment(ctx, req.Namespace, cmp.Or(pod.Spec.ServiceAccountName, "default"))
	if err != nil {
		return nil, declareSkipped, fmt.Sprintf("%s: %v", who, err)
	}
	if environment == "" {
		return nil, declareSkipped, fmt.Sprintf("%s: neither its ServiceAccount %s nor namespace %s has the label %s",
			who, cmp.Or(pod.Spec.ServiceAccountName, "default"), req.Namespace, d.label)
	}
	injection, problems := declare.Plan(pod, d.label, environment)
	if len(problems) > 0 {
		outcome, problem = declareSkipped, who+": "+strings.Join(problems, "; ")
	}
	if injection == nil {
		return nil, cmp.Or(outcome, declareNone), problem
	}
	return injection.Patches(pod), declareInjected, problem
}

// environment returns the environment of requests that the pod will send.
func (d *declarer) environment(ctx context.Context, namespace, account string) (string, error) {
	if err := d.cachesUsable(); err != nil {
		return "", err
	}
	return d.resolver.Identify(ctx, authenticationv1.UserInfo{
		Username: serviceaccount.MakeUsername(namespace, account), Groups: serviceaccount.MakeGroupNames(namespace),
	})
}

func podName(req admission.Request) string { return cmp.Or(req.Name, "without a name yet") }
