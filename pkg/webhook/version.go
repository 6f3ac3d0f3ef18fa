package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// onlyV1 refuses everything but a v1 AdmissionReview, for which the shipped
// configurations ask. Without it, controller-runtime takes a review of any
// kind and version for one of v1.
func onlyV1(next http.Handler) http.Handler {
	want := metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: admissionv1.SchemeGroupVersion.String()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The API server writes kind and version first, so that little of the
		// body is read here, and what has been read is put back.
		var seen bytes.Buffer
		got, err := typeOf(io.TeeReader(r.Body, &seen))
		if err == nil && got != want {
			err = fmt.Errorf("got kind %q of version %q", got.Kind, got.APIVersion)
		}
		if err == nil {
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(&seen, r.Body), r.Body}
			next.ServeHTTP(w, r)
			return
		}
		refusal := admission.Errored(http.StatusBadRequest, fmt.Errorf("solepod takes %s of %s only: %w", want.Kind, want.APIVersion, err))
		review := admissionv1.AdmissionReview{TypeMeta: want, Response: &refusal.AdmissionResponse}
		if err := json.NewEncoder(w).Encode(review); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
}

// maxTypeBytes is how far into a body kind and version are looked for: as far
// as controller-runtime reads a review at all.
const maxTypeBytes = 7 << 20

// typeOf reads kind and apiVersion of a JSON object, and no more of it than
// needed.
func typeOf(body io.Reader) (metav1.TypeMeta, error) {
	var out metav1.TypeMeta
	decoder := json.NewDecoder(io.LimitReader(body, maxTypeBytes))
	if start, err := decoder.Token(); err != nil {
		return out, err
	} else if start != json.Delim('{') {
		return out, fmt.Errorf("got %v instead of an object", start)
	}
	for decoder.More() && (out.Kind == "" || out.APIVersion == "") {
		key, err := decoder.Token()
		if err != nil {
			return out, err
		}
		var value any = &json.RawMessage{}
		switch key {
		case "kind":
			value = &out.Kind
		case "apiVersion":
			value = &out.APIVersion
		}
		if err := decoder.Decode(value); err != nil {
			return out, err
		}
	}
	return out, nil
}
