package webhook

import (
	"context"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/policy"
)

// Guard is the validating hook. It decides on the creation of task pods, and
// on updates that make a pod a task pod.
type Guard struct {
	reviewer
	settings    policy.Settings
	enforcement config.Enforcement
	pods        podReader
	now         func() time.Time
}

// Handle implements admission.Handler.
func (g *Guard) Handle(ctx context.Context, req admission.Request) admission.Response {
	decision, err := g.handle(ctx, req)
	if err != nil {
		return g.failed(ctx, err)
	}
	return g.respond(ctx, decision)
}

func (g *Guard) handle(ctx context.Context, req admission.Request) (policy.Decision, error) {
	if !isPod(req) || req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return policy.Decision{Allowed: true}, nil
	}
	object, err := decodePod("object", req.Object, req)
	if err != nil {
		return policy.Decision{}, err
	}
	pod := object.pod()
	if req.Operation == admissionv1.Update {
		before, err := decodePod("oldObject", req.OldObject, req)
		if err != nil {
			return policy.Decision{}, err
		}
		if !policy.BecomesTaskPod(before.pod(), pod) {
			return policy.Decision{Allowed: true}, nil
		}
	}
	if !pod.Guarded() {
		return policy.Decision{Allowed: true}, nil
	}
	requester, err := g.requester(ctx, req)
	if err != nil {
		return policy.Decision{}, err
	}
	return g.decide(ctx, policy.Submission{Pod: pod, Requester: requester, Now: g.now()})
}

// decide asks the cache first. A denial is given only on what the API server
// itself says of the pods in the way: the cache does not know their phase, and
// lags behind. An admission needs no second look, because the end of a pod
// never turns an admission into a denial.
func (g *Guard) decide(ctx context.Context, n policy.Submission) (policy.Decision, error) {
	id, _ := n.Pod.Identity()
	existing, err := g.pods.cached(ctx, id)
	if err != nil {
		return policy.Decision{}, err
	}
	decision := policy.Decide(n, existing, g.settings)
	if decision.Existing == nil {
		return decision, nil // admitted, or denied for a reason of its own
	}
	if existing, err = g.pods.current(ctx, existing); err != nil {
		return policy.Decision{}, err
	}
	return policy.Decide(n, existing, g.settings), nil
}

// reasonAnnotation is the audit annotation that carries a denial's reason; the
// API server prefixes it with the webhook's name.
const reasonAnnotation = "reason"

// respond turns a decision into a response, as far as it is enforced, and logs it.
func (g *Guard) respond(ctx context.Context, d policy.Decision) admission.Response {
	log := ctrllog.FromContext(ctx)
	if d.Allowed {
		log.V(1).Info("Admitted")
		return admission.Allowed("")
	}
	log.Info("Denied", "reason", d.Reason, "code", d.Code, "enforcement", g.enforcement, "message", d.Message)
	response := admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{
		Allowed:          g.enforcement != config.EnforcementDeny,
		AuditAnnotations: map[string]string{reasonAnnotation: string(d.Reason)},
	}}
	switch g.enforcement {
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
