package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// MaxReview is how many bytes of a review are read: two objects of 3 MiB each,
// which is the most that an API server takes, and what stands around them.
const MaxReview = 7 << 20

// reviews reads reviews, has a webhook handle them, and writes its answers.
//
// It takes the place of the webhook's own ServeHTTP, which reads a review three
// times over: for its kind, for its version, and into the request. A task pod
// is some ten KiB, and this one pass takes a tenth of that time. And it takes a
// v1 AdmissionReview and nothing else, for which the shipped configurations ask;
// controller-runtime takes a review of any kind and version for one of v1.
func reviews(webhook *admission.Webhook) http.Handler {
	want := metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: admissionv1.SchemeGroupVersion.String()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		review, err := read(w, r, want)
		var response admission.Response
		switch tooLarge := new(http.MaxBytesError); {
		case err == nil:
			response = webhook.Handle(r.Context(), admission.Request{AdmissionRequest: *review.Request})
		case errors.As(err, &tooLarge):
			response = admission.Errored(http.StatusRequestEntityTooLarge, err)
		default:
			response = admission.Errored(http.StatusBadRequest, err)
		}
		log := ctrllog.FromContext(r.Context())
		if err != nil {
			log.Error(err, "Could not read a review", "address", r.RemoteAddr)
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: want, Response: &response.AdmissionResponse}); err != nil {
			log.Error(err, "Could not answer a review", "address", r.RemoteAddr)
		}
	})
}

func read(w http.ResponseWriter, r *http.Request, want metav1.TypeMeta) (*admissionv1.AdmissionReview, error) {
	// The server gives a body any time to arrive: who sends half a review would keep
	// memory and a connection for good. Only what is no connection, as in tests,
	// takes no deadline.
	connection := http.NewResponseController(w)
	if deadline, ok := r.Context().Deadline(); ok {
		_ = connection.SetReadDeadline(deadline)
	}
	var review admissionv1.AdmissionReview
	if err := jsonv2.UnmarshalRead(http.MaxBytesReader(w, r.Body, MaxReview), &review, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil, fmt.Errorf("solepod takes %s of %s only: %w", want.Kind, want.APIVersion, err)
	}
	if review.TypeMeta != want {
		return nil, fmt.Errorf("solepod takes %s of %s only: got kind %.100q of version %.100q", want.Kind, want.APIVersion, review.Kind, review.APIVersion)
	}
	if review.Request == nil {
		return nil, errors.New("the review has no request")
	}
	_ = connection.SetReadDeadline(time.Time{}) // the rest is not about this sender's pace
	return &review, nil
}

// logOf has what identifies a review on each of its log lines.
func logOf(base logr.Logger, req *admission.Request) logr.Logger {
	if req == nil {
		return base
	}
	return base.WithValues("operation", req.Operation, "namespace", req.Namespace, "name", req.Name,
		"user", req.UserInfo.Username, "uid", req.UID)
}
