package webhook

import (
	"context"
	"maps"
	"slices"
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

// handle returns only "add" operations: one for the label, and two for annotations. One
// records where the label comes from. The other records that an Airflow has created a pod
// with a controller reference.
func (s *stamp) handle(ctx context.Context, req admission.Request) ([]jsonpatch.JsonPatchOperation, error) {
	if s.off || !isPod(req) || req.Operation != admissionv1.Create {
		return nil, nil
	}
	object, err := decodePod("object", req.Object, req)
	if err != nil {
		return nil, err
	}
	pod := object.pod()
	// An empty label stays, too: it may be part of Airflow's selector, which would
	// not match another value.
	_, labelled := object.Labels[s.label]
	if !pod.IsTask() || pod.Mirror || labelled && !pod.ControllerOwned {
		return nil, nil
	}
	requester, err := s.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	if pod.ControllerOwned && (requester.Environment == "" || requester.Guessed || ofOperator(object)) {
		return nil, nil // a controller, an operator or a syncer has created it
	}
	annotations := map[string]string{}
	var patches []jsonpatch.JsonPatchOperation
	if !labelled && requester.Environment != "" {
		annotations[taskpod.AnnotationEnvironment] = taskpod.Stamped
		patches = append(patches, jsonpatch.NewOperation("add", "/metadata/labels/"+pointer(s.label), requester.Environment))
	}
	if pod.ControllerOwned {
		annotations[taskpod.AnnotationCreator] = taskpod.CreatorAirflow
	}
	switch {
	case len(annotations) == 0:
	case object.Annotations == nil:
		patches = append(patches, jsonpatch.NewOperation("add", "/metadata/annotations", annotations))
	default:
		for _, key := range slices.Sorted(maps.Keys(annotations)) {
			patches = append(patches, jsonpatch.NewOperation("add", "/metadata/annotations/"+pointer(key), annotations[key]))
		}
	}
	return patches, nil
}

// ofOperator reports whether a pod with a controller reference is that of a program that
// may have the ServiceAccount of an Airflow, or live in its namespace: an executor of
// Spark, which its driver creates, or a pod of a virtual cluster.
func ofOperator(object *podObject) bool {
	_, virtual := object.Labels["vcluster.loft.sh/managed-by"]
	return virtual || object.Labels["spark-role"] == "executor" && object.Owners[0].Kind == "Pod"
}

// pointer escapes a key for a JSON pointer (RFC 6901).
func pointer(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
