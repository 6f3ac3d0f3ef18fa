package webhook

import (
	"context"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/taskpod"
)

// stamp is the mutating hook. It adds the environment of the requester to task pods
// without an environment label. The selectors of environments that declare
// themselves then never match such a pod.
type stamp struct {
	reviewer
	label string
	off   bool
}

// Handle implements admission.Handler.
func (s *stamp) Handle(ctx context.Context, req admission.Request) admission.Response {
	patches, err := s.handle(ctx, req)
	if err != nil {
		return s.failed(ctx, req, err)
	}
	return admission.Patched("", patches...)
}

// handle returns only "add" operations: one for the label, and one for the
// annotation that records where the label comes from.
func (s *stamp) handle(ctx context.Context, req admission.Request) ([]jsonpatch.JsonPatchOperation, error) {
	if s.off || !isPod(req) || req.Operation != admissionv1.Create {
		return nil, nil
	}
	object, err := decodePod("object", req.Object, req)
	if err != nil {
		return nil, err
	}
	if !object.pod().Guarded() {
		return nil, nil
	}
	// An empty label stays, too: it may be part of Airflow's selector, which would
	// not match another value.
	if _, carried := object.Labels[s.label]; carried {
		return nil, nil
	}
	requester, err := s.requester(ctx, req)
	if err != nil || requester.Environment == "" {
		return nil, err
	}
	patches := []jsonpatch.JsonPatchOperation{
		jsonpatch.NewOperation("add", "/metadata/labels/"+pointer(s.label), requester.Environment),
	}
	if object.Annotations == nil {
		return append(patches, jsonpatch.NewOperation("add",
			"/metadata/annotations", map[string]string{taskpod.AnnotationEnvironment: taskpod.Stamped})), nil
	}
	return append(patches, jsonpatch.NewOperation("add",
		"/metadata/annotations/"+pointer(taskpod.AnnotationEnvironment), taskpod.Stamped)), nil
}

// pointer escapes a key for a JSON pointer (RFC 6901).
func pointer(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
