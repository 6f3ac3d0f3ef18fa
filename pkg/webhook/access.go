package webhook

import (
	"context"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/policy"
)

// access is the validating hook for requests on existing task pods. It denies
// environments access to the pods of others. It fails open: a pod that cannot be
// deleted is worse than a pod that the wrong environment deletes.
type access struct {
	reviewer // onError is Allow
	enforcer
	settings policy.Settings
	off      bool
	pods     podReader
	claims   claimer
	now      func() time.Time
}

// Handle implements admission.Handler.
func (a *access) Handle(ctx context.Context, req admission.Request) admission.Response {
	requester, decision, err := a.handle(ctx, req)
	if err != nil {
		return a.failed(ctx, req, err)
	}
	return a.respond(ctx, req, requester.Environment, decision)
}

func (a *access) handle(ctx context.Context, req admission.Request) (requester policy.Requester, decision policy.Decision, err error) {
	allowed := policy.Decision{Allowed: true}
	if a.off || req.Resource.Group != "" || req.Resource.Resource != "pods" {
		return requester, allowed, nil
	}
	requester, err = a.identify(ctx, req)
	if err != nil || requester.Environment == "" && requester.Ambiguous == nil {
		return requester, allowed, err
	}
	access := policy.Access{Operation: policy.Operation(req.Operation), Requester: requester, Now: a.now()}
	switch req.Operation {
	case admissionv1.Update:
		after, err := decodePod("object", req.Object, req)
		if err != nil {
			return requester, allowed, err
		}
		access.Updated = after.pod()
		fallthrough
	case admissionv1.Delete:
		before, err := decodePod("oldObject", req.OldObject, req)
		if err != nil {
			return requester, allowed, err
		}
		access.Pod = before.pod()
		if err := validate("oldObject", access.Pod); err != nil {
			return requester, allowed, err
		}
	case admissionv1.Connect:
		// The object of the review is a PodExecOptions or the like.
		pod, err := a.pods.named(ctx, req.Namespace, req.Name)
		if err != nil || pod == nil {
			return requester, allowed, err
		}
		access.Pod = *pod
	default:
		return requester, allowed, nil
	}
	decision = policy.DecideAccess(access, a.settings)
	if decision.Reason == policy.ForeignEnvironment || decision.Reason == policy.ForeignCleanup {
		// The label may have changed since the requester created the pod. A claim that
		// cannot be read proves nothing: the hook fails open in other cases only.
		if access.Creator, err = a.claims.Creator(ctx, access.Pod, requester); err != nil {
			ctrllog.FromContext(ctx).Error(brief(err), "Could not read the creator of a pod")
		}
		decision = policy.DecideAccess(access, a.settings)
	}
	return requester, decision, nil
}

// identify resolves the requester. The namespace of the pod does not matter: an
// administrator has no environment.
func (a *access) identify(ctx context.Context, req admission.Request) (policy.Requester, error) {
	if err := a.cachesUsable(); err != nil {
		return policy.Requester{}, err
	}
	return a.resolver.Resolve(ctx, req.UserInfo, "")
}
