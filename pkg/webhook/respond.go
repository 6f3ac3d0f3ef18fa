package webhook

import (
	"context"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/policy"
)

// reasonAnnotation is the audit annotation that carries a denial's reason; the
// API server prefixes it with the webhook's name.
const reasonAnnotation = "reason"

// enforcer tells of decisions.
type enforcer struct {
	enforcement config.Enforcement
}

// respond turns a decision into a response, as far as it is enforced, and logs it.
func (e enforcer) respond(ctx context.Context, d policy.Decision) admission.Response {
	log := ctrllog.FromContext(ctx)
	if d.Allowed {
		log.V(1).Info("Admitted")
		return admission.Allowed("")
	}
	log.Info("Denied", "reason", d.Reason, "code", d.Code, "enforcement", e.enforcement, "message", d.Message)
	response := admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:          e.enforcement != config.EnforcementDeny,
		AuditAnnotations: map[string]string{reasonAnnotation: string(d.Reason)},
	}}
	switch e.enforcement {
	case config.EnforcementDeny:
		response.Result = &metav1.Status{
			Status: metav1.StatusFailure, Code: d.Code, Reason: statusReason(d.Code), Message: d.Message,
		}
	case config.EnforcementWarn:
		response.Warnings = []string{d.Message}
	}
	return response
}

// statusReason is Forbidden or Conflict, and never AlreadyExists: on that the
// API server would retry a create with generateName by itself.
func statusReason(code int32) metav1.StatusReason {
	if code == http.StatusConflict {
		return metav1.StatusReasonConflict
	}
	return metav1.StatusReasonForbidden
}
