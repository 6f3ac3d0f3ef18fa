package webhook

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"unicode"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/policy"
)

// reasonAnnotation is the audit annotation with the reason of a denial. The API
// server prefixes it with the name of the hook.
const reasonAnnotation = "reason"

// enforcer turns decisions into responses, log lines, metrics and events on the
// conflicting pod.
type enforcer struct {
	enforcement config.Enforcement
	label       string // the environment label
	events      events.EventRecorder
	counters    *counters
}

// respond turns a decision into a response, as far as it is enforced. environment
// is that of the requester.
func (e enforcer) respond(ctx context.Context, req admission.Request, environment string, d policy.Decision) admission.Response {
	log := ctrllog.FromContext(ctx)
	environment, operation := e.counters.environments.value(environment), operationOf(req)
	if d.Allowed {
		log.V(1).Info("Admitted")
		e.counters.decisions.WithLabelValues(operation, verdictAdmitted, "", environment).Inc()
		return admission.Allowed("")
	}
	log.Info("Denied", "reason", d.Reason, "code", d.Code, "enforcement", e.enforcement, "message", d.Message)
	response := admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:          e.enforcement != config.EnforcementDeny,
		AuditAnnotations: map[string]string{reasonAnnotation: string(d.Reason)},
	}}
	verdict := verdictAudited
	switch e.enforcement {
	case config.EnforcementDeny:
		verdict = verdictDenied
		response.Result = &metav1.Status{
			Status: metav1.StatusFailure, Code: d.Code, Reason: statusReason(d), Message: d.PublicMessage,
		}
	case config.EnforcementWarn:
		verdict = verdictWarned
		response.Warnings = []string{d.PublicMessage}
	}
	e.counters.decisions.WithLabelValues(operation, verdict, string(d.Reason), environment).Inc()
	if d.Reason == policy.ForeignEnvironment {
		to := e.counters.environments.value(d.Existing.Environment(e.label))
		e.counters.foreign.WithLabelValues(environment, to, operation, verdict).Inc()
	}
	if !isDryRun(req) {
		e.note(d)
	}
	return response
}

// note creates an event on the conflicting pod. It creates none on a pod in flight,
// which does not exist yet. The recorder combines events with the same reason on
// the same pod.
func (e enforcer) note(d policy.Decision) {
	pod := d.Existing
	if pod == nil || d.Reason == policy.InFlight {
		return
	}
	e.events.Eventf(
		&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, nil,
		corev1.EventTypeWarning, string(d.Reason), string(e.enforcement), "%s", shorten(d.PublicMessage),
	)
}

// shorten cuts a message at the maximum length of the note of an event.
func shorten(message string) string {
	const most, more = 1024, "..."
	if len(message) <= most {
		return message
	}
	return message[:most-len(more)] + more
}

// oneLine shortens a message and puts it on one line.
func oneLine(message string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '_'
	}, shorten(message))
}

// brief shortens an error for a log: it may quote a forged review.
func brief(err error) error { return errors.New(oneLine(err.Error())) }

// statusReason returns Forbidden or Conflict. On AlreadyExists, the API server repeats a
// create with generateName under another name, which helps if the name is taken, and
// only then.
func statusReason(d policy.Decision) metav1.StatusReason {
	switch {
	case d.Reason == policy.NameTaken:
		return metav1.StatusReasonAlreadyExists
	case d.Code == http.StatusConflict:
		return metav1.StatusReasonConflict
	}
	return metav1.StatusReasonForbidden
}
