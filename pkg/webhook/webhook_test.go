package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/semaphore"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/taskpod"
)

// The API server and its cache are fakes here: these tests are about reviews
// that no API server sends, and about an API server that fails.

// hooks are the handlers over a cache and a live view of the same objects.
type hooks struct {
	stamp   stamp
	guard   guard
	access  access
	declare declarer
}

func newHooks(cached client.Reader, live client.Client, change func(*hooks)) *hooks {
	c := newCounters()
	r := reviewer{
		counters: c,
		onError:  config.OnErrorDeny, cachesUsable: func() error { return nil },
		resolver: environment.Resolver{Label: taskpod.DefaultEnvironmentLabel, Objects: metadata.Reader{Cache: cached, Live: live}},
	}
	cfg := config.Default()
	told := enforcer{cfg.Enforcement, cfg.EnvironmentLabel, events.NewFakeRecorder(100), c}
	h := &hooks{
		stamp:   stamp{reviewer: r, label: cfg.EnvironmentLabel},
		declare: declarer{reviewer: r, label: cfg.EnvironmentLabel, events: told.events, pods: c.declared},
		guard: guard{
			reviewer: r, enforcer: told, settings: cfg.Policy(),
			pods: podReader{index: known{cached}, cache: cached, live: live}, superseder: live, now: time.Now,
			claims: &claim.Claimer{API: live, Namespace: "solepod-system", Settings: cfg.Policy(), Deleted: claim.NewDeletedPods().Has},
		},
	}
	r.onError = config.OnErrorAllow
	h.access = access{reviewer: r, enforcer: told, settings: cfg.Policy(), pods: h.guard.pods, claims: h.guard.claims, now: time.Now}
	if change != nil {
		change(h)
	}
	return h
}

// cluster is a fake API server with Airflow alpha and the given pods.
func cluster(t testing.TB, pods ...*corev1.Pod) client.WithWatch {
	t.Helper()
	builder := fake.NewClientBuilder().WithScheme(scheme.Scheme).
		WithTypeConverters(managedfields.NewDeducedTypeConverter()). // the default takes milliseconds to make
		WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: "airflow-alpha", Labels: map[string]string{taskpod.DefaultEnvironmentLabel: "alpha"},
		}})
	for _, pod := range pods {
		builder.WithObjects(pod)
	}
	return builder.Build()
}

// known is what an informer on the pods of a cluster would know.
type known struct{ client.Reader }

func (k known) ByIndex(index, key string) ([]any, error) {
	var list corev1.PodList
	if err := k.List(context.Background(), &list); err != nil {
		return nil, err
	}
	informed := toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, podindex.Indexers())
	for i := range list.Items {
		if err := informed.Add(&list.Items[i]); err != nil {
			return nil, err
		}
	}
	return informed.ByIndex(index, key)
}

func taskPod(name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "data-jobs", Name: name, UID: types.UID("uid-of-" + name), Labels: map[string]string{
			"kubernetes_pod_operator": "True", "dag_id": "d", "task_id": "t", "run_id": "r", "try_number": "1",
		}},
	}
}

// review is a valid review of the creation of a pod by Airflow alpha, changed.
func review(pod any, change func(*admissionv1.AdmissionReview)) []byte {
	raw, err := json.Marshal(pod)
	if err != nil {
		panic(err)
	}
	r := &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "review-1", Operation: admissionv1.Create, Namespace: "data-jobs",
			Kind:     metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Object:   runtime.RawExtension{Raw: raw},
		},
	}
	r.Request.UserInfo.Username = "system:serviceaccount:airflow-alpha:airflow"
	if change != nil {
		change(r)
	}
	body, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return body
}

// hooked serves a handler alone.
func hooked(ctx context.Context, handler admission.Handler) http.Handler {
	return chain(ctx, semaphore.NewWeighted(largeAtOnce), handler)
}

// post sends a body to a handler as the API server does.
func post(t *testing.T, handler admission.Handler, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	hooked(req.Context(), handler).ServeHTTP(answer, req)
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(answer.Body.Bytes(), &out); err != nil || out.Response == nil {
		t.Fatalf("no answer: %v: %s", err, answer.Body)
	}
	return out.Response
}

// outcome is an answer in a few words.
func outcome(r *admissionv1.AdmissionResponse) string {
	switch {
	case r.Allowed && len(r.Patch) > 0:
		return "patch " + string(r.Patch)
	case r.Allowed:
		return "allow"
	}
	return fmt.Sprintf("%d %s", r.Result.Code, r.Result.Message)
}

const stamped = `patch [{"op":"add","path":"/metadata/labels/airflow-environment","value":"alpha"},` +
	`{"op":"add","path":"/metadata/annotations","value":{"solepod.io/environment":"stamped"}}]`

func TestReviews(t *testing.T) {
	// nested is a review with so many objects inside one another.
	nested := func(depth int) []byte {
		depth -= 3 // the review, its request and the object
		deep := strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth)
		return bytes.Replace(review(json.RawMessage(`{"spec":"DEEP"}`), nil), []byte(`"DEEP"`), []byte(deep), 1)
	}
	var inside struct{ Request json.RawMessage }
	if err := json.Unmarshal(review(taskPod("n"), nil), &inside); err != nil {
		t.Fatal(err)
	}
	versionLast := inside.Request
	large := taskPod("n")
	large.Annotations = map[string]string{"large": strings.Repeat("x", 3<<20)}
	request := func(change func(*admissionv1.AdmissionRequest)) []byte {
		return review(taskPod("n"), func(r *admissionv1.AdmissionReview) { change(r.Request) })
	}
	tests := map[string]struct {
		body         []byte
		stamp, guard string // what the answer begins with
	}{
		"a task pod":         {review(taskPod("n"), nil), stamped, "allow"},
		"garbage":            {[]byte("{{{"), "400 ", "400 "},
		"no JSON at all":     {[]byte("hello"), "400 ", "400 "},
		"empty":              {nil, "400 solepod accepts AdmissionReview of admission.k8s.io/v1 only: ", "400 "},
		"null":               {[]byte("null"), "400 ", "400 "},
		"no request":         {[]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), "400 the review has no request", "400 "},
		"another version":    {review(taskPod("n"), func(r *admissionv1.AdmissionReview) { r.APIVersion = "admission.k8s.io/v2" }), `400 solepod accepts AdmissionReview of admission.k8s.io/v1 only: got kind "AdmissionReview" of version "admission.k8s.io/v2"`, "400 "},
		"version v1beta1":    {review(taskPod("n"), func(r *admissionv1.AdmissionReview) { r.APIVersion = "admission.k8s.io/v1beta1" }), "400 ", "400 "},
		"another kind":       {review(taskPod("n"), func(r *admissionv1.AdmissionReview) { r.Kind = "Pod"; r.APIVersion = "v1" }), "400 ", "400 "},
		"version comes last": {[]byte(`{"request":` + string(versionLast) + `,"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`), stamped, "allow"},
		"over 7 MiB":         {append(review(taskPod("n"), nil), bytes.Repeat([]byte(" "), 8<<20)...), "413 ", "413 "},
		"a pod of 3 MiB":     {review(large, nil), `patch [{"op":"add","path":"/metadata/labels/airflow-environment"`, "allow"},
		"no object":          {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = nil }), "400 solepod cannot decide on this pod: object is missing from the review of a CREATE", "400 solepod cannot decide on this pod: object is missing"},
		"object is null":     {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte("null") }), "400 solepod cannot decide on this pod: object is missing", "400 solepod cannot decide on this pod: object is missing"},
		"object is a list":   {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte("[]") }), "400 solepod cannot decide on this pod: object is not a pod", "400 solepod cannot decide on this pod: object is not a pod"},
		"labels are a list":  {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"metadata":{"labels":[]}}`) }), "400 ", "400 "},
		"labels are null":    {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"metadata":{"labels":null}}`) }), "allow", "allow"},
		"no metadata":        {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{}`) }), "allow", "allow"},
		"nesting of 10,000":  {nested(10_000), "allow", "allow"},
		"nesting of 10,001":  {nested(10_001), "400 ", "400 "},
		"a lying namespace":  {request(func(r *admissionv1.AdmissionRequest) { r.Namespace = "elsewhere" }), `400 solepod cannot decide on this pod: object is in namespace "data-jobs", its request in "elsewhere"`, "400 "},
		"unknown kind": {request(func(r *admissionv1.AdmissionRequest) {
			r.Kind.Kind, r.Kind.Group, r.Resource.Resource, r.Resource.Group = "Deployment", "apps", "deployments", "apps"
		}), "allow", "allow"},
		"a subresource":     {request(func(r *admissionv1.AdmissionRequest) { r.SubResource = "eviction" }), "allow", "allow"},
		"unknown operation": {request(func(r *admissionv1.AdmissionRequest) { r.Operation = "EXPLODE" }), "allow", "allow"},
		"a delete":          {request(func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Delete; r.Object.Raw = nil }), "allow", "allow"},
		"update, no oldObject": {request(func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }),
			"allow", "400 solepod cannot decide on this pod: oldObject is missing from the review of a UPDATE"},
		"nobody":                      {request(func(r *admissionv1.AdmissionRequest) { r.UserInfo.Username = "" }), "allow", "allow"},
		"no ServiceAccount form":      {request(func(r *admissionv1.AdmissionRequest) { r.UserInfo.Username = "system:serviceaccount:::" }), "allow", "allow"},
		"its namespace has vanished":  {request(func(r *admissionv1.AdmissionRequest) { r.UserInfo.Username = "system:serviceaccount:gone:airflow" }), "allow", "allow"},
		"field names in another case": {request(func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"Metadata":{"Labels":{"dag_id":"d"}}}`) }), "allow", "allow"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHooks(cluster(t), cluster(t), nil)
			for _, check := range []struct {
				name    string
				handler admission.Handler
				want    string
			}{{"stamp", &h.stamp, tc.stamp}, {"guard", &h.guard, tc.guard}} {
				got := outcome(post(t, check.handler, tc.body))
				if !strings.HasPrefix(got, check.want) || check.want == "allow" && got != "allow" {
					t.Errorf("%s: %.300s\nwant %s", check.name, got, check.want)
				}
			}
		})
	}
}

// A malformed review never prevents the deletion of a pod.
func TestAccessReviews(t *testing.T) {
	pod := taskPod("x")
	pod.Labels["airflow-environment"] = "production"
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	request := func(change func(*admissionv1.AdmissionRequest)) []byte {
		return review(pod, func(r *admissionv1.AdmissionReview) {
			r.Request.Operation, r.Request.Name = admissionv1.Delete, "x"
			r.Request.Object.Raw, r.Request.OldObject.Raw = nil, raw
			change(r.Request)
		})
	}
	denied := "403 solepod: environment alpha may not"
	for name, tc := range map[string]struct {
		body []byte
		want string
	}{
		"a foreign delete":     {request(func(*admissionv1.AdmissionRequest) {}), denied + " delete"},
		"a foreign exec":       {request(func(r *admissionv1.AdmissionRequest) { r.Operation, r.SubResource = admissionv1.Connect, "exec" }), denied + " connect"},
		"exec in no pod":       {request(func(r *admissionv1.AdmissionRequest) { r.Operation, r.Name = admissionv1.Connect, "gone" }), "allow"},
		"by nobody":            {request(func(r *admissionv1.AdmissionRequest) { r.UserInfo.Username = "" }), "allow"},
		"no oldObject":         {request(func(r *admissionv1.AdmissionRequest) { r.OldObject.Raw = nil }), "400 "},
		"oldObject is a list":  {request(func(r *admissionv1.AdmissionRequest) { r.OldObject.Raw = []byte("[]") }), "400 "},
		"an update, no object": {request(func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }), "400 "},
		"a create":             {request(func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Create }), "allow"},
		"another resource":     {request(func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" }), "allow"},
		"no operation":         {request(func(r *admissionv1.AdmissionRequest) { r.Operation = "" }), "allow"},
		"a lying namespace":    {request(func(r *admissionv1.AdmissionRequest) { r.Namespace = "elsewhere" }), "400 "},
		"an update of anything": {request(func(r *admissionv1.AdmissionRequest) {
			r.Operation = admissionv1.Update
			r.Object.Raw = []byte("{}")
			r.Namespace = "data-jobs"
		}), denied + " update"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHooks(cluster(t, pod), cluster(t, pod), nil)
			got := outcome(post(t, &h.access, tc.body))
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// A denial needs a read from the API server: the cache lags.
func TestDenialsAreConfirmedLive(t *testing.T) {
	existing := taskPod("x")
	phase := func(p corev1.PodPhase) *corev1.Pod {
		pod := existing.DeepCopy()
		pod.Status.Phase = p
		return pod
	}
	relabelled := existing.DeepCopy()
	relabelled.Labels["already_checked"] = "True"
	for name, tc := range map[string]struct {
		live *corev1.Pod
		want string
	}{
		"still running":         {phase(corev1.PodRunning), "403 "},
		"has ended":             {phase(corev1.PodSucceeded), "allow"},
		"is gone":               {nil, "allow"},
		"Airflow has marked it": {relabelled, "allow"},
	} {
		t.Run(name, func(t *testing.T) {
			live := cluster(t)
			if tc.live != nil {
				live = cluster(t, tc.live)
			}
			h := newHooks(cluster(t, existing), live, nil)
			got := outcome(post(t, &h.guard, review(taskPod("n"), func(r *admissionv1.AdmissionReview) {
				r.Request.UserInfo.Username = "nobody"
			})))
			if !strings.HasPrefix(got, tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// Thousands of pods can conflict with one, mapped ones or leftovers.
func TestDenialsReadFewPods(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodRunning, corev1.PodSucceeded} {
		var pods []*corev1.Pod
		for i := range 500 {
			pod := taskPod(fmt.Sprintf("x-%d", i))
			pod.Labels["map_index"] = fmt.Sprint(i)
			pod.Labels[taskpod.DefaultEnvironmentLabel] = "production"
			pod.Status.Phase = phase
			pods = append(pods, pod)
		}
		reads := 0
		live := interceptor.NewClient(cluster(t, pods...), interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				reads++
				return c.Get(ctx, key, obj, opts...)
			},
		})
		h := newHooks(cluster(t, pods...), live, nil)
		got := outcome(post(t, &h.guard, review(taskPod("n"), nil)))
		if !strings.HasPrefix(got, "40") || reads > 2*enoughReads {
			t.Errorf("%s: %d reads, %s", phase, reads, got)
		}
	}
}

func TestErrorsOfOurOwn(t *testing.T) {
	down := interceptor.NewClient(cluster(t), interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New("connection refused")
		},
	})
	stale := func(h *hooks) {
		now := time.Unix(1000, 0)
		fresh := newFreshness(time.Minute, func() time.Time { return now })
		now = now.Add(61 * time.Second)
		h.stamp.cachesUsable, h.guard.cachesUsable = fresh.check, fresh.check
	}
	tests := map[string]struct {
		change       func(*hooks)
		onError      config.OnError
		stamp, guard string
	}{
		"the API server is down": {nil, config.OnErrorDeny,
			"500 solepod cannot decide on this pod: reading the environment of ServiceAccount airflow-alpha/airflow: connection refused",
			"500 solepod cannot decide on this pod: reading the environment of ServiceAccount airflow-alpha/airflow: connection refused"},
		"the API server is down, Allow": {nil, config.OnErrorAllow, "allow", "allow"},
		"solepod may not read the pods": {func(h *hooks) {
			h.guard.pods.live = interceptor.NewClient(cluster(t), interceptor.Funcs{
				Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
					return apierrors.NewForbidden(corev1.Resource("pods"), "x", errors.New("no RBAC"))
				},
			})
			h.stamp.resolver.Objects.Live = cluster(t)
			h.guard.resolver.Objects.Live = cluster(t)
		}, config.OnErrorDeny, "patch ", "500 solepod cannot decide on this pod: reading pod data-jobs/x: pods"},
		"the caches are filling": {func(h *hooks) {
			h.stamp.cachesUsable = func() error { return errNotSynced }
			h.guard.cachesUsable = h.stamp.cachesUsable
		}, config.OnErrorDeny, "503 solepod cannot decide on this pod: the caches are still filling", "503 "},
		"the caches may be stale": {stale, config.OnErrorDeny,
			"503 solepod cannot decide on this pod: cached Pods are stale: no watch event from the API server for 1m1s", "503 "},
		"the caches may be stale, Allow": {stale, config.OnErrorAllow, "allow", "allow"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHooks(cluster(t, taskPod("x")), down, tc.change)
			h.stamp.onError, h.guard.onError = tc.onError, tc.onError
			if got := outcome(post(t, &h.access, review(taskPod("x"), func(r *admissionv1.AdmissionReview) {
				r.Request.Operation, r.Request.OldObject = admissionv1.Delete, r.Request.Object
			}))); got != "allow" {
				t.Errorf("a delete: %s", got)
			}
			for handler, want := range map[admission.Handler]string{&h.stamp: tc.stamp, &h.guard: tc.guard} {
				answer := post(t, handler, review(taskPod("n"), nil))
				if got := outcome(answer); !strings.HasPrefix(got, want) {
					t.Errorf("%T: %s, want %s", handler, got, want)
				}
				if tc.onError == config.OnErrorAllow && len(answer.Warnings) != 1 {
					t.Errorf("%T: admitted without a warning", handler)
				}
			}
			// A review that makes no sense is refused all the same.
			broken := review(taskPod("n"), func(r *admissionv1.AdmissionReview) { r.Request.Object.Raw = nil })
			if got := outcome(post(t, &h.guard, broken)); !strings.HasPrefix(got, "400 ") {
				t.Errorf("broken: %s", got)
			}
		})
	}
}

func TestPatches(t *testing.T) {
	annotated := taskPod("n")
	annotated.Annotations = map[string]string{"a": "b"}
	h := newHooks(cluster(t), cluster(t), func(h *hooks) { h.stamp.label = "example.com/env~1" })
	want := `[{"op":"add","path":"/metadata/labels/example.com~1env~01","value":"alpha"},` +
		`{"op":"add","path":"/metadata/annotations/solepod.io~1environment","value":"stamped"}]`
	if diff := cmp.Diff(want, string(post(t, &h.stamp, review(annotated, nil)).Patch)); diff != "" {
		t.Error(diff)
	}
	owned := taskPod("n")
	yes := true
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "Job", Name: "j", UID: "u", Controller: &yes}}
	byJobs := func(r *admissionv1.AdmissionReview) {
		r.Request.UserInfo.Username = "system:serviceaccount:kube-system:job-controller"
	}
	if got := outcome(post(t, &h.stamp, review(owned, byJobs))); got != "allow" {
		t.Errorf("the pod of a Job: %s", got)
	}
	// An Airflow has given it a controller.
	want = `[{"op":"add","path":"/metadata/labels/example.com~1env~01","value":"alpha"},` +
		`{"op":"add","path":"/metadata/annotations","value":{"solepod.io/created-by":"airflow","solepod.io/environment":"stamped"}}]`
	if diff := cmp.Diff(want, string(post(t, &h.stamp, review(owned, nil)).Patch)); diff != "" {
		t.Error(diff)
	}
	owned.Annotations, owned.Labels["example.com/env~1"] = map[string]string{"a": "b"}, "alpha"
	want = `[{"op":"add","path":"/metadata/annotations/solepod.io~1created-by","value":"airflow"}]`
	if diff := cmp.Diff(want, string(post(t, &h.stamp, review(owned, nil)).Patch)); diff != "" {
		t.Error(diff)
	}
}

// Requesters cannot fill the metrics with invented environments.
func TestMetricsAreBounded(t *testing.T) {
	b := bounded{limit: 2}
	var got []string
	for _, value := range []string{"a", "b", "c", "a", ""} {
		got = append(got, b.value(value))
	}
	if want := []string{"a", "b", overflow, "a", overflow}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestNotesAreShort(t *testing.T) {
	if long := shorten(strings.Repeat("x", 2000)); len(long) != 1024 || !strings.HasSuffix(long, "x...") {
		t.Errorf("%d: %s", len(long), long)
	}
	if short := shorten("x"); short != "x" {
		t.Error(short)
	}
}

// From SIGTERM on, each answer is the last one on its connection.
func TestGoodbye(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	handler := closeConnectionsAfter(ctx, http.NotFoundHandler())
	for _, want := range []string{"", "close"} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/guard", nil))
		if got := answer.Header().Get("Connection"); got != want {
			t.Errorf("Connection: %q, want %q", got, want)
		}
		stop()
	}
}

// A client that sends half a review gets a response in time, and its connection ends.
// The connection of a complete review is reused.
func TestSlowReviews(t *testing.T) {
	h := newHooks(cluster(t), cluster(t), nil)
	server := httptest.NewServer(hooked(t.Context(), &h.guard))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	body := review(taskPod("n"), nil)
	send := func(body io.Reader) (*admissionv1.AdmissionResponse, bool) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/guard?timeout=2s", body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var out admissionv1.AdmissionReview
		if err := errors.Join(json.NewDecoder(resp.Body).Decode(&out), resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Response, resp.Close
	}
	for range 2 {
		if r, closed := send(bytes.NewReader(body)); !r.Allowed || closed {
			t.Errorf("in one piece: %s, closed: %v", outcome(r), closed)
		}
	}
	half, writer := io.Pipe()
	defer func() { _ = writer.Close() }()
	go func() { _, _ = writer.Write(body[:len(body)/2]) }()
	if r, closed := send(half); r.Allowed || r.Result.Code != http.StatusBadRequest || !closed {
		t.Errorf("half of one: %s, closed: %v", outcome(r), closed)
	}
}

// Large reviews wait for one another, and not for ever. Nothing else waits for
// them.
func TestLargeReviews(t *testing.T) {
	h := newHooks(cluster(t), cluster(t), nil)
	large := semaphore.NewWeighted(largeAtOnce)
	mux := http.NewServeMux()
	mux.Handle(GuardPath, chain(t.Context(), large, &h.guard))
	mux.Handle(AccessPath, chain(t.Context(), large, &h.access))
	server := httptest.NewServer(mux)
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	send := func(path string, body io.Reader) int {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+path, body)
		if err != nil {
			t.Error(err)
			return 0
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	small := review(taskPod("n"), nil)
	big := taskPod("n")
	big.Annotations = map[string]string{"big": strings.Repeat("x", largeReview)}
	whole := review(big, nil)

	// Of these the rest does not come.
	var senders sync.WaitGroup
	var halves []*io.PipeWriter
	for i := range largeAtOnce {
		half, writer := io.Pipe()
		halves = append(halves, writer)
		senders.Go(func() { send([]string{GuardPath, AccessPath}[i%2]+"?timeout=30s", half) })
	}
	for large.TryAcquire(1) {
		large.Release(1)
		time.Sleep(time.Millisecond)
	}
	if got := send(GuardPath+"?timeout=200ms", bytes.NewReader(whole)); got != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", got)
	}
	if got := send(GuardPath+"?timeout=10s", bytes.NewReader(small)); got != http.StatusOK {
		t.Errorf("a small one: %d", got)
	}
	for _, writer := range halves {
		_ = writer.Close()
	}
	senders.Wait()
	if got := send(GuardPath+"?timeout=10s", bytes.NewReader(whole)); got != http.StatusOK {
		t.Errorf("one more, later: %d", got)
	}
}

// What a forged review is full of does not fill the log.
func TestLogsAreBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	forged := func(change func(*admission.Request)) admission.Request {
		req := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
			UID: types.UID(long), Name: long, Namespace: "data-jobs", Operation: admissionv1.Create,
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Object: runtime.RawExtension{Raw: []byte("{}")},
		}}
		req.UserInfo.Username = long
		change(&req)
		return req
	}
	pod := taskPod(long)
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	// An error of a request contains its URL.
	down := interceptor.NewClient(cluster(t), interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return errors.New(long)
		},
	})
	h := newHooks(cluster(t), down, nil)
	for name, req := range map[string]admission.Request{
		"a pod that cannot be read": forged(func(r *admission.Request) {
			r.Operation, r.SubResource, r.UserInfo.Username = admissionv1.Connect, "exec", "system:serviceaccount:airflow-alpha:airflow"
		}),
		"namespace": forged(func(r *admission.Request) { r.Namespace = long }),
		"operation": forged(func(r *admission.Request) { r.Operation = admissionv1.Operation(long) }),
		"object":    forged(func(r *admission.Request) { r.Object.Raw = raw }),
		"not JSON":  forged(func(r *admission.Request) { r.Object.Raw = []byte(`{"` + long + `":[,]}`) }),
	} {
		for hook, handler := range map[string]admission.Handler{"stamp": &h.stamp, "guard": &h.guard, "access": &h.access} {
			var logged strings.Builder
			log := logOf(funcr.New(func(_, line string) { logged.WriteString(line) }, funcr.Options{Verbosity: 1}), &req)
			log.Info("A review")
			handler.Handle(ctrllog.IntoContext(t.Context(), log), req)
			if logged.Len() > 32<<10 {
				t.Errorf("%s at %s: %d bytes", name, hook, logged.Len())
			}
		}
	}
}
