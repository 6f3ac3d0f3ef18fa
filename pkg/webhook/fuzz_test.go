package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Any client that reaches the webhook can post anything. These targets post what no
// API server sends, and check what the documentation promises of the responses.

const (
	// mostAnswer bounds an answer, and mostClaim what is written of a claim: 64
	// holders, each with a name, a UID, an environment and a try.
	mostAnswer = 16 << 10
	mostClaim  = 64 << 10
	// mostSeries bounds the metrics of one review.
	mostSeries = 4
)

// hostile is a world to post reviews into, in which nothing changes.
type hostile struct {
	now    time.Time
	world  client.WithWatch
	writes []string
	events int
}

// newHostile has Airflow alpha, a running pod of production, earlier tries, and
// claims of all kinds.
func newHostile(t testing.TB) *hostile {
	h := &hostile{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	production, earlier := taskPod("x"), taskPod("y")
	production.Labels[taskpod.DefaultEnvironmentLabel] = "production"
	earlier.Labels[taskpod.LabelTask] = "retried"
	earlier.Labels[taskpod.DefaultEnvironmentLabel] = "alpha"
	h.world = cluster(t, production, earlier)
	claims := claim.Claimer{API: h.world, Namespace: "solepod-system", Settings: policy.Settings{EnvironmentLabel: taskpod.DefaultEnvironmentLabel}, Deleted: claim.NewDeletedPods().Has}
	claimed := func(task, index, environment, try string) {
		pod := taskPod(strings.Join([]string{"claimed", index, environment, try}, "-"))
		pod.Labels[taskpod.LabelTask], pod.Labels[taskpod.LabelTry] = task, try
		pod.Labels[taskpod.DefaultEnvironmentLabel] = environment
		if index != "" {
			pod.Labels[taskpod.LabelMapIndex] = index
		}
		n := policy.Submission{Pod: taskpod.FromMeta(pod, ""), Now: h.now.Add(-time.Second)}
		if d, err := claims.Take(context.Background(), n, false); err != nil || !d.Allowed {
			t.Fatal(d.Message, err)
		}
	}
	claimed("in-flight", "", "production", "1")
	claimed("mapped", "1", "production", "1")
	for try := range 64 {
		claimed("full", "", "alpha", fmt.Sprint(try))
	}
	return h
}

// api refuses what an API server would refuse, and records all other writes.
func (h *hostile) api(t *testing.T) client.Client {
	t.Helper()
	note := func(verb string, object client.Object) {
		content, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) > mostClaim {
			t.Errorf("%s of %d bytes", verb, len(content))
		}
		h.writes = append(h.writes, fmt.Sprintf("%s %T", verb, object))
	}
	lease := func(verb string, object client.Object) {
		if _, ok := object.(*coordinationv1.Lease); !ok || object.GetNamespace() != "solepod-system" {
			t.Fatalf("%s of a %T in %q", verb, object, object.GetNamespace())
		}
		for _, problem := range append(
			metav1validation.ValidateLabels(object.GetLabels(), nil),
			validation.ValidateAnnotations(object.GetAnnotations(), nil)...,
		) {
			t.Errorf("%s: %v", verb, problem)
		}
		note(verb, object)
	}
	return interceptor.NewClient(h.world, interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("nothing is ever listed")
		},
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, _ ...client.CreateOption) error {
			if err := c.Get(ctx, client.ObjectKeyFromObject(object), &coordinationv1.Lease{}); err == nil {
				return apierrors.NewAlreadyExists(coordinationv1.Resource("leases"), object.GetName())
			}
			lease("create", object)
			return nil
		},
		Update: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.UpdateOption) error {
			lease("update", object)
			return nil
		},
		Patch: func(_ context.Context, _ client.WithWatch, object client.Object, _ client.Patch, _ ...client.PatchOption) error {
			note("mark", object)
			return nil
		},
		Delete: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.DeleteOption) error {
			note("delete", object)
			return nil
		},
	})
}

// Eventf implements events.EventRecorder.
func (h *hostile) Eventf(regarding, _ runtime.Object, _, _, _, _ string, _ ...any) {
	if content, err := json.Marshal(regarding); err != nil || len(content) > 1<<10 {
		panic(fmt.Sprintf("an event at %.300s, %v", content, err))
	}
	h.events++
}

// settings reads a configuration from a number, so that a fuzzer can pick one.
func settings(n uint8) config.Configuration {
	c := config.Default()
	bit := func(i int) bool { return n>>i&1 == 1 }
	if bit(0) {
		c.Injection = config.InjectionRequire
	}
	if bit(1) {
		c.Retries = config.RetriesSupersede
	}
	if bit(2) {
		c.Disclosure = config.DisclosureDiscreet
	}
	if bit(3) {
		c.Enforcement = config.EnforcementWarn
	}
	return c
}

// supersedes is a bit of settings.
const supersedes = 1 << 1

// post posts a body to one of the hooks and checks the answer, and what was
// done before it.
func (h *hostile) post(t *testing.T, which, setting uint8, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	h.writes, h.events = nil, 0
	cfg := settings(setting)
	hooks := newHooks(h.world, h.api(t), func(hooks *hooks) {
		hooks.stamp.off = cfg.Injection == config.InjectionOff
		hooks.guard.settings, hooks.access.settings = cfg.Policy(), cfg.Policy()
		hooks.guard.enforcement, hooks.access.enforcement = cfg.Enforcement, cfg.Enforcement
		hooks.guard.events, hooks.access.events = h, h
		hooks.guard.claims.(*claim.Claimer).Settings = cfg.Policy()
		hooks.guard.now = func() time.Time { return h.now }
		hooks.access.now = hooks.guard.now
	})
	handler := []admission.Handler{&hooks.stamp, &hooks.guard, &hooks.access}[which%3]
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/?timeout=10s", bytes.NewReader(body))
	answer := httptest.NewRecorder()
	hooked(req.Context(), handler).ServeHTTP(answer, req)
	if answer.Code != http.StatusOK || answer.Body.Len() > mostAnswer {
		t.Fatalf("status %d, %d bytes", answer.Code, answer.Body.Len())
	}
	var out admissionv1.AdmissionReview
	strict := json.NewDecoder(answer.Body)
	strict.DisallowUnknownFields()
	if err := strict.Decode(&out); err != nil || out.Kind != "AdmissionReview" || out.APIVersion != "admission.k8s.io/v1" || out.Request != nil || out.Response == nil {
		t.Fatalf("%v: %+v", err, out)
	}
	h.check(t, setting, body, out.Response)
	registry := prometheus.NewRegistry()
	if err := hooks.guard.reviewer.counters.register(registry); err != nil {
		t.Fatal(err)
	}
	checkMetrics(t, registry)
	return out.Response
}

func (h *hostile) check(t *testing.T, setting uint8, body []byte, r *admissionv1.AdmissionResponse) {
	t.Helper()
	lines := append([]string{r.Result.Message, string(r.Result.Reason)}, r.Warnings...)
	for _, line := range append(lines, r.AuditAnnotations[reasonAnnotation]) {
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("not one line: %q", line)
		}
		if code := r.Result.Code; strings.ContainsAny(line, "\"'\\") && code != http.StatusBadRequest && code != http.StatusRequestEntityTooLarge {
			t.Errorf("in JSON, inside Python, this becomes unreadable: %q", line)
		}
		if strings.Contains(line, "exceeded quota") && r.Result.Code == http.StatusForbidden {
			t.Errorf("Airflow would try again for ever: %q", line)
		}
	}
	switch code := r.Result.Code; {
	case r.Allowed && code == http.StatusOK:
	case !r.Allowed && r.Result.Status == metav1.StatusFailure && (code == http.StatusForbidden || code == http.StatusConflict):
	case !r.Allowed && (code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge):
	case !r.Allowed && code == http.StatusServiceUnavailable && strings.Contains(r.Result.Message, "the claim is full"):
	default: // such as a panic, or a write that an API server would not take
		t.Errorf("allowed %v: %+v", r.Allowed, r.Result)
	}
	if len(r.Patch) > 0 {
		var patches []jsonpatch.JsonPatchOperation
		if err := json.Unmarshal(r.Patch, &patches); err != nil || !r.Allowed || len(patches) != 2 {
			t.Fatalf("%v: %s", err, r.Patch)
		}
		for i, path := range []string{"/metadata/labels/airflow-environment", "/metadata/annotations"} {
			if patch := patches[i]; patch.Operation != "add" || patch.Path != path && patch.Path != path+"/solepod.io~1environment" {
				t.Errorf("%s of %s", patch.Operation, patch.Path)
			}
		}
	}
	most := 1
	if bytes.Contains(body, []byte(taskpod.LabelMapIndex)) || bytes.ContainsRune(body, '\\') {
		most = 2 // the family's mark
	}
	if setting&supersedes != 0 {
		most += 2 // of the one pod of an earlier try that there is
	}
	if len(h.writes) > most || h.events > 1 {
		t.Errorf("%d events, and these writes: %q", h.events, h.writes)
	}
}

// checkMetrics checks that reviews cannot fill the metrics with arbitrary values.
func checkMetrics(t *testing.T, registry prometheus.Gatherer) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := 0
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			series++
			for _, label := range metric.GetLabel() {
				if value := label.GetValue(); len(value) > 63 || label.GetName() == "operation" && !slices.Contains([]string{"CREATE", "UPDATE", "DELETE", "CONNECT", overflow}, value) {
					t.Errorf("%s of %s is %.300q", label.GetName(), family.GetName(), value)
				}
			}
		}
	}
	if series > mostSeries {
		t.Errorf("%d time series", series)
	}
}

// FuzzReviews posts anything.
func FuzzReviews(f *testing.F) {
	h := newHostile(f)
	for which := range uint8(3) {
		for _, change := range []func(*admissionv1.AdmissionReview){
			nil,
			func(r *admissionv1.AdmissionReview) { r.Request = nil },
			func(r *admissionv1.AdmissionReview) { r.APIVersion = "admission.k8s.io/v1beta1" },
			func(r *admissionv1.AdmissionReview) { r.Request.OldObject = r.Request.Object },
			func(r *admissionv1.AdmissionReview) {
				r.Request.Operation, r.Request.OldObject = admissionv1.Delete, r.Request.Object
			},
			func(r *admissionv1.AdmissionReview) {
				r.Request.Operation, r.Request.SubResource = admissionv1.Connect, "exec"
			},
		} {
			f.Add(which, uint8(0), review(taskPod("n"), change))
		}
		f.Add(which, uint8(1), []byte("{{{"))
		f.Add(which, uint8(2), []byte("null"))
		f.Add(which, uint8(4), []byte(strings.Repeat(`{"request":`, 200)))
	}
	f.Fuzz(func(t *testing.T, which, setting uint8, body []byte) {
		answer := h.post(t, which, setting, body)
		var said struct{ Request struct{ UID string } }
		if err := json.Unmarshal(body, &said); err != nil || answer.UID == "" {
			// An unreadable review has no UID.
			if code := answer.Result.Code; err != nil && (answer.Allowed || code != http.StatusBadRequest && code != http.StatusRequestEntityTooLarge) {
				t.Errorf("%v: %+v", err, answer.Result)
			}
			return
		}
		if string(answer.UID) != said.Request.UID {
			t.Errorf("the answer to %q is to %q", said.Request.UID, answer.UID)
		}
	})
}

// FuzzLies posts reviews that are well-formed, and whose parts do not belong
// together.
func FuzzLies(f *testing.F) {
	h := newHostile(f)
	object := func(name string, labels ...string) []byte {
		pod := taskPod(name)
		for _, word := range labels {
			key, value, _ := strings.Cut(word, "=")
			pod.Labels[key] = value
		}
		raw, err := json.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	const alpha, admin = "system:serviceaccount:airflow-alpha:airflow", "kubernetes-admin"
	fresh, own := object("n", "task_id=fresh"), object("y", "task_id=retried", "airflow-environment=alpha")
	// Few enough for a minute of fuzzing to be spent on others.
	for which := range uint8(3) {
		for i, seed := range [][]byte{
			fresh, object("n"), object("n", "map_index=3"), object("n", "task_id=mapped", "map_index=2"), object("n", "task_id=in-flight"),
			object("n", "task_id=retried", "try_number=2"), object("n", "task_id=full", "airflow-environment=alpha"),
			object("n", "airflow-environment=production"), object("x", "already_checked=True"),
			object("n\nexceeded quota"), object("../n"), object("n", "dag_id=\n"), object("n", "airflow-environment="+strings.Repeat("x", 300)),
			[]byte("null"), []byte("{}"), []byte("[]"), []byte(`"x"`), []byte(`{"metadata":{"labels":null,"ownerReferences":null,"annotations":{}}}`),
			[]byte(`{"metadata":{"ownerReferences":[{"controller":false},{"controller":true},null,{}],"managedFields":{},"finalizers":7}}`),
		} {
			setting := []uint8{0xff, 0, supersedes}[i%3]
			f.Add(which, setting, "CREATE", "review-1", "data-jobs", "", "pods", "", alpha, false, seed, []byte(nil))
			f.Add(which, setting, "CREATE", "review-1", "data-jobs", "n", "pods", "", admin, true, seed, []byte(nil))
			f.Add(which, setting, "UPDATE", "", "elsewhere", "n", "pods", "status", alpha, false, seed, fresh)
			f.Add(which, setting, "DELETE", "\n", "data-jobs", "x", "pods", "", alpha, false, []byte(nil), seed)
			f.Add(which, setting, "UPDATE", "review-1", "data-jobs", "y", "pods", "", alpha, false, own, seed)
		}
		f.Add(which, uint8(0), "CONNECT", "review-1", "data-jobs", "x", "pods", "exec", alpha, false, []byte("{}"), []byte(nil))
		f.Add(which, uint8(0), "EXPLODE", "review-1", "data-jobs", "x", "pods", "exec", alpha, false, fresh, fresh)
		f.Add(which, uint8(0), "CREATE", "review-1", "", "", "deployments", "scale", "system:serviceaccount:::", false, fresh, fresh)
	}
	f.Fuzz(func(t *testing.T, which, setting uint8, operation, uid, namespace, name, resource, subresource, user string, dryRun bool, object, old []byte) {
		raw := func(content []byte) (out runtime.RawExtension) {
			if len(content) == 0 {
				return out
			}
			if !json.Valid(content) {
				t.Skip("FuzzReviews has these")
			}
			return runtime.RawExtension{Raw: content}
		}
		body, err := json.Marshal(admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
			Request: &admissionv1.AdmissionRequest{
				UID: types.UID(uid), Operation: admissionv1.Operation(operation), Namespace: namespace, Name: name, DryRun: &dryRun,
				Resource: metav1.GroupVersionResource{Version: "v1", Resource: resource}, SubResource: subresource,
				UserInfo: authenticationv1.UserInfo{Username: user},
				Object:   raw(object), OldObject: raw(old),
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		answer := h.post(t, which, setting, body)
		if want := string([]rune(uid)); string(answer.UID) != want && answer.Result.Code != http.StatusBadRequest {
			t.Errorf("the answer to %q is to %q", want, answer.UID)
		}
		if dryRun && len(h.writes)+h.events > 0 {
			t.Errorf("a dry run had %d events, and wrote %q", h.events, h.writes)
		}
	})
}
