package page

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"context"
	"errors"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
)

func live(t *testing.T, c client.Reader) (*Live, *prometheus.CounterVec) {
	t.Helper()
	registry := prometheus.NewRegistry()
	decisions := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "solepod_decisions_total"}, []string{"verdict", "reason"})
	registry.MustRegister(decisions)
	cfg := config.Default()
	return &Live{
		Source:  audit.Source{Client: c, Namespace: "solepod-system", Configuration: cfg},
		Options: audit.Options{Settings: cfg.Policy()}, Replica: "solepod-0", Decisions: registry, Every: time.Hour,
	}, decisions
}

func ask(t *testing.T, l *Live, method string) *httptest.ResponseRecorder {
	t.Helper()
	answer := httptest.NewRecorder()
	l.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), method, "/audit", nil))
	return answer
}

func TestLive(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "airflow", Name: "task", UID: "1", Labels: map[string]string{
		"kubernetes_pod_operator": "True", "dag_id": "d", "task_id": "t", "run_id": "r", "airflow-environment": "<script>alert(1)</script>",
	}}}
	lists := 0
	c := fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(pod).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if _, ok := list.(*corev1.PodList); ok {
				lists++
			}
			return c.List(ctx, list, options...)
		},
	}).Build()
	l, decisions := live(t, c)
	decisions.WithLabelValues("denied", "DuplicateTry").Inc()
	for range 3 {
		answer := ask(t, l, http.MethodGet)
		if answer.Code != http.StatusOK || !strings.HasPrefix(answer.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Fatal(answer.Code, answer.Header(), answer.Body)
		}
		page := answer.Body.String()
		for _, want := range []string{"solepod-0", "&lt;script&gt;", `class="denied"`} {
			if !strings.Contains(page, want) {
				t.Errorf("no %q in %s", want, page)
			}
		}
		if strings.Contains(page, "<script") {
			t.Error("there is a script in it")
		}
	}
	if lists != 1 {
		t.Errorf("%d scans for 3 pages", lists)
	}
	if got := ask(t, l, http.MethodPost); got.Code != http.StatusMethodNotAllowed {
		t.Error(got.Code)
	}
}

func TestLiveFails(t *testing.T) {
	c := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
			return errors.New("there is no API server")
		},
	}).Build()
	l, _ := live(t, c)
	if got := ask(t, l, http.MethodGet); got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), "there is no API server") {
		t.Error(got.Code, got.Body)
	}
}

// Decisions are counted in their minute, minutes without any are there too, and
// there are no more than an hour's.
func TestCount(t *testing.T) {
	l, decisions := live(t, nil)
	start := time.Date(2023, 3, 8, 9, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		after    time.Duration
		admitted float64
	}{{0, 2}, {10 * time.Second, 3}, {3 * time.Minute, 4}} {
		decisions.WithLabelValues("admitted", "").Add(step.admitted)
		if err := l.count(start.Add(step.after)); err != nil {
			t.Fatal(err)
		}
	}
	var got []int
	for _, m := range l.history() {
		got = append(got, m.Verdicts["admitted"])
	}
	if len(got) != 4 || got[0] != 5 || got[1] != 0 || got[3] != 4 {
		t.Error(got)
	}
	for _, later := range []time.Duration{50 * time.Minute, 100 * time.Minute, 100 * time.Hour} {
		if err := l.count(start.Add(later)); err != nil {
			t.Fatal(err)
		}
	}
	minutes := l.history()
	if last := minutes[len(minutes)-1]; len(minutes) > history || !last.Start.Equal(start.Add(100*time.Hour)) {
		t.Errorf("%d minutes, the last is %s", len(minutes), last.Start)
	}
}
