package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

var errNotSynced = apierrors.NewServiceUnavailable("the caches are still filling")

// reviewer is the part that all hooks share.
type reviewer struct {
	onError config.OnError
	// cachesUsable returns an error while the caches are filling or may be stale.
	cachesUsable func() error
	resolver     environment.Resolver
	counters     *counters
	// discreet keeps the text of errors, such as names of pods, out of responses.
	discreet bool
}

// isPod reports whether a review is about a pod itself. Other objects are sent only
// by a wrong webhook configuration. They are admitted: to block the cluster would
// not fix the configuration.
func isPod(req admission.Request) bool {
	return req.Resource.Group == "" && req.Resource.Resource == "pods" && req.SubResource == ""
}

// updatesPod reports whether a review is about an update of a pod or of its status. Each
// can change labels.
func updatesPod(req admission.Request) bool {
	return req.Resource.Group == "" && req.Resource.Resource == "pods" && req.Operation == admissionv1.Update &&
		(req.SubResource == "" || req.SubResource == "status")
}

func isDryRun(req admission.Request) bool { return req.DryRun != nil && *req.DryRun }

// requester resolves the requester. It fails if the caches are not usable: an empty
// cache has neither environments nor pods.
func (r *reviewer) requester(ctx context.Context, req admission.Request) (policy.Requester, error) {
	if err := r.cachesUsable(); err != nil {
		return policy.Requester{}, err
	}
	return r.resolver.Resolve(ctx, req.UserInfo, req.Namespace)
}

// podObject is the part of a pod that decisions need. The object in the review can
// have 3 MiB.
type podObject struct {
	podMeta `json:"metadata"`
	Status  struct {
		Phase corev1.PodPhase `json:"phase"`
	} `json:"status"`
}

func (o *podObject) pod() taskpod.Pod { return taskpod.FromMeta(o, o.Status.Phase) }

// podMeta is an ObjectMeta without the lists that decisions do not need: three bytes
// of [{},{},...] would take two hundred bytes of memory.
type podMeta struct {
	metav1.ObjectMeta
	Finalizers    skipped `json:"finalizers"`
	ManagedFields skipped `json:"managedFields"`
	Owners        owners  `json:"ownerReferences"`
}

// GetOwnerReferences has the controller alone.
func (m *podMeta) GetOwnerReferences() []metav1.OwnerReference { return m.Owners }

// skipped is a value that is not decoded.
type skipped struct{}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (*skipped) UnmarshalJSONFrom(from *jsontext.Decoder) error { return from.SkipValue() }

// owners has at most one item: the controller of an object.
type owners []metav1.OwnerReference

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (o *owners) UnmarshalJSONFrom(from *jsontext.Decoder) error {
	if from.PeekKind() != '[' {
		return json.UnmarshalDecode(from, (*[]metav1.OwnerReference)(o)) // null, or an error
	}
	if _, err := from.ReadToken(); err != nil {
		return err
	}
	var owner metav1.OwnerReference // reused: there can be a million
	for from.PeekKind() != ']' {
		owner = metav1.OwnerReference{}
		if err := json.UnmarshalDecode(from, &owner); err != nil {
			return err
		}
		if *o == nil && owner.Controller != nil && *owner.Controller {
			*o = owners{owner}
		}
	}
	_, err := from.ReadToken()
	return err
}

// decodePod reads a pod from a field of a review. An object without a namespace has
// the namespace of the request.
func decodePod(field string, raw runtime.RawExtension, req admission.Request) (*podObject, error) {
	if len(raw.Raw) == 0 {
		return nil, badRequest("%s is missing from the review of a %s", field, req.Operation)
	}
	var object podObject
	if err := json.Unmarshal(raw.Raw, &object, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil, badRequest("%s is not a pod: %v", field, err)
	}
	if object.Namespace == "" {
		object.Namespace = req.Namespace
	}
	if object.Namespace != req.Namespace {
		return nil, badRequest("%s is in namespace %q, its request in %q", field, object.Namespace, req.Namespace)
	}
	return &object, nil
}

// badRequest returns a shortened error of status 400.
func badRequest(format string, args ...any) error {
	return apierrors.NewBadRequest(oneLine(fmt.Sprintf(format, args...)))
}

// failed responds to a request on which solepod cannot decide. It always refuses a
// malformed review. If solepod or the API server has failed, onError decides.
// (failurePolicy does not: to the API server, this is a valid response.)
func (r *reviewer) failed(ctx context.Context, req admission.Request, err error) admission.Response {
	status := metav1.Status{Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError}
	var known apierrors.APIStatus
	if errors.As(err, &known) {
		// Any other 4xx is a response of the API server to solepod, such as 403 for a
		// missing permission. The requester did not cause it.
		if code := known.Status().Code; code == http.StatusBadRequest || code >= http.StatusInternalServerError {
			status.Code, status.Reason = code, known.Status().Reason
		}
	}
	status.Status = metav1.StatusFailure
	status.Message = oneLine(fmt.Sprintf("solepod cannot decide on this pod: %v", err))
	if r.discreet && status.Code >= http.StatusInternalServerError {
		status.Message = "solepod cannot decide on this pod; its log has the cause"
	}

	admit := status.Code >= http.StatusInternalServerError && r.onError == config.OnErrorAllow
	r.counters.decisions.WithLabelValues(operationOf(req), verdictFailed, string(status.Reason), "").Inc()
	ctrllog.FromContext(ctx).Error(brief(err), "Could not decide", "admitted", admit, "code", status.Code)
	if admit {
		response := admission.Allowed("")
		response.Warnings = []string{status.Message}
		return response
	}
	return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status}}
}
