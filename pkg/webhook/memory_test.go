package webhook

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// mostMemory is the maximum number of allocated bytes for each byte of a review. A
// review of an API server takes four: it is read into a buffer that doubles, and the
// object is copied out of it.
const mostMemory = 20

// A pod of 3 MiB, which is as large as an API server takes them, takes memory in
// proportion to its size, whatever it is made of.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("make test-slow runs it")
	}
	const large = 3 << 20
	// list is as many of its items as make a large object, with a number in each
	// that has a place for one.
	list := func(item string) string {
		var b strings.Builder
		for i := 0; b.Len() < large; i++ {
			b.WriteString(strings.ReplaceAll(item, "N", fmt.Sprint(i)))
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	taskLabels := `"labels":{"kubernetes_pod_operator":"True","dag_id":"d","task_id":"t","run_id":"r"`
	for name, metadata := range map[string]string{
		"one annotation":      `"annotations":{"a":"` + strings.Repeat("x", large) + `"}`,
		"many annotations":    `"annotations":{` + list(`"N":"",`) + `}`,
		"many labels":         `"labels":{` + list(`"N":"",`) + `}`,
		"a task pod's labels": taskLabels + `,` + list(`"N":"",`) + `}`,
		"one label":           taskLabels + `,"a":"` + strings.Repeat("x", large) + `"}`,
		"one environment":     taskLabels + `,"airflow-environment":"` + strings.Repeat("x", large) + `"}`,
		"finalizers":          `"finalizers":[` + list(`"",`) + `]`,
		// Decoded, these would take 200 and 140 times their size.
		"managedFields":   `"managedFields":[` + list(`{},`) + `]`,
		"ownerReferences": `"ownerReferences":[` + list(`{},`) + `]`,
		"unknown fields":  `"unknown":{` + list(`"N":0,`) + `}`,
		"an unknown list": `"unknown":[` + list(`[],`) + `]`,
		"containers":      `"name":"x"},"spec":{"containers":[` + list(`{},`) + `]`,
		"variables":       `"name":"x"},"spec":{"containers":[{"env":[` + list(`{},`) + `]}]`,
		"mounts":          `"name":"x"},"spec":{"containers":[{"args":["airflow"],"volumeMounts":[` + list(`{},`) + `]}]`,
		"a long name":     `"name":"` + strings.Repeat("x", large) + `"`,
		"an escaped name": taskLabels + `},"name":"` + strings.Repeat(`\u0001`, large/6) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			body := review(nil, func(r *admissionv1.AdmissionReview) {
				r.Request.Object.Raw = []byte(`{"metadata":{` + metadata + `}}`)
				r.Request.OldObject.Raw = r.Request.Object.Raw
			})
			h := newHooks(cluster(t), cluster(t), nil)
			for _, handler := range []admission.Handler{&h.stamp, &h.guard, &h.access, &h.declare} {
				req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
				answer := httptest.NewRecorder()
				served := hooked(t.Context(), handler)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				served.ServeHTTP(answer, req)
				runtime.ReadMemStats(&after)
				if times := (after.TotalAlloc - before.TotalAlloc) / uint64(len(body)); times > mostMemory {
					t.Errorf("%T: %d times the size of the review, which is %d", handler, times, len(body))
				}
				if answer.Body.Len() > mostAnswer {
					t.Errorf("%T: an answer of %d bytes", handler, answer.Body.Len())
				}
			}
		})
	}
}
