package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-logr/logr"
	"golang.org/x/sync/semaphore"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// maxReview is the maximum size of a review in bytes: two objects of 3 MiB each, the
// maximum of the API server, and the fields around them.
const maxReview = 7 << 20

// A large review has more than largeReview bytes, or an unknown length. The review
// of a task pod has about ten KiB and never waits. A large review can take many
// times its size in memory, so only largeAtOnce of them are handled concurrently.
const (
	largeReview = 256 << 10
	largeAtOnce = 4
)

// chain serves the reviews of a hook by its handler, with what identifies the
// review on each log line. Hooks that share memory for large reviews share large.
// After ctx ends, it closes connections.
func chain(ctx context.Context, large *semaphore.Weighted, handler admission.Handler) http.Handler {
	return closeConnectionsAfter(ctx, withDeadline(limitLargeReviews(large, reviews(&admission.Webhook{Handler: handler, LogConstructor: logOf}))))
}

// closeConnectionsAfter closes each connection after its next response, once ctx
// has ended. The server closes idle connections when it stops: a review that the
// API server has just sent on one of them would be lost.
func closeConnectionsAfter(ctx context.Context, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// withDeadline gives a review nine tenths of the timeout that the API server has
// put into the URL. The rest is for the response to arrive. Nothing else cancels
// a review: the server's own context ends with SIGTERM, after which running
// reviews are finished.
func withDeadline(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
		if err != nil || timeout <= 0 || timeout > maxTimeout {
			timeout = maxTimeout
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout*9/10)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// maxTimeout is the longest timeout that a webhook can have.
const maxTimeout = 30 * time.Second

// limitLargeReviews reads at most largeAtOnce large reviews at the same time. A
// further one waits; at its deadline, it fails with status 503.
func limitLargeReviews(large *semaphore.Weighted, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 || r.ContentLength > largeReview {
			if err := large.Acquire(r.Context(), 1); err != nil {
				http.Error(w, fmt.Sprintf("solepod handles %d reviews of more than %d bytes concurrently, and others took too long", largeAtOnce, largeReview), http.StatusServiceUnavailable)
				return
			}
			defer large.Release(1)
		}
		next.ServeHTTP(w, r)
	})
}

// reviews decodes reviews, lets a webhook handle them and writes the responses.
//
// It replaces the ServeHTTP of the webhook for two reasons. It bounds the memory of
// a review, and it accepts v1 AdmissionReviews only, where controller-runtime treats
// a review of any kind and version as v1. It also decodes in one pass, where
// ServeHTTP needs three, and takes a tenth of the time.
func reviews(webhook *admission.Webhook) http.Handler {
	want := metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: admissionv1.SchemeGroupVersion.String()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		review, err := read(w, r, want)
		var response admission.Response
		switch tooLarge := new(http.MaxBytesError); {
		case err == nil:
			response = webhook.Handle(r.Context(), admission.Request{AdmissionRequest: *review.Request})
		case errors.As(err, &tooLarge):
			response = admission.Errored(http.StatusRequestEntityTooLarge, brief(err))
		default:
			response = admission.Errored(http.StatusBadRequest, brief(err))
		}
		log := ctrllog.FromContext(r.Context())
		if err != nil {
			log.Error(brief(err), "Cannot read a review", "address", r.RemoteAddr)
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: want, Response: &response.AdmissionResponse}); err != nil {
			log.Error(err, "Cannot respond to a review", "address", r.RemoteAddr)
		}
	})
}

func read(w http.ResponseWriter, r *http.Request, want metav1.TypeMeta) (*admissionv1.AdmissionReview, error) {
	// The server has no deadline for a body: half a review would hold memory and a
	// connection forever. Setting the deadline fails only without a connection, in
	// tests.
	connection := http.NewResponseController(w)
	if deadline, ok := r.Context().Deadline(); ok {
		_ = connection.SetReadDeadline(deadline)
	}
	var review admissionv1.AdmissionReview
	if err := jsonv2.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxReview), &review, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil, fmt.Errorf("solepod accepts %s of %s only: %w", want.Kind, want.APIVersion, err)
	}
	if review.TypeMeta != want {
		return nil, fmt.Errorf("solepod accepts %s of %s only: got kind %.100q of version %.100q", want.Kind, want.APIVersion, review.Kind, review.APIVersion)
	}
	if review.Request == nil {
		return nil, errors.New("the review has no request")
	}
	_ = connection.SetReadDeadline(time.Time{})
	return &review, nil
}

// logOf adds what identifies a review to each of its log lines. In a forged review,
// each value can have megabytes.
func logOf(base logr.Logger, req *admission.Request) logr.Logger {
	if req == nil {
		return base
	}
	return base.WithValues("operation", shorten(string(req.Operation)), "namespace", shorten(req.Namespace), "name", shorten(req.Name),
		"user", shorten(req.UserInfo.Username), "uid", shorten(string(req.UID)))
}
