package webhook

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// memory is the cache of an informer, without the informer.
type memory struct {
	client.Reader

	namespaces map[string]*metav1.PartialObjectMetadata
	pods       toolscache.Indexer
}

func newMemory(b *testing.B, pods int) *memory {
	b.Helper()
	m := &memory{pods: toolscache.NewIndexer(toolscache.MetaNamespaceKeyFunc, podindex.Indexers())}
	alpha := metadata.Object("Namespace")
	alpha.Labels = map[string]string{taskpod.DefaultEnvironmentLabel: "alpha"}
	m.namespaces = map[string]*metav1.PartialObjectMetadata{"airflow-alpha": alpha}
	for i := range pods {
		object := metadata.Object("Pod")
		object.ObjectMeta = taskPod(fmt.Sprint("pod-", i)).ObjectMeta
		object.Labels["run_id"] = object.Name
		if err := m.pods.Add(object); err != nil {
			b.Fatal(err)
		}
	}
	return m
}

func (m *memory) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	if found, ok := m.namespaces[key.Name]; ok && key.Namespace == "" {
		found.DeepCopyInto(into.(*metav1.PartialObjectMetadata))
		return nil
	}
	return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
}

// granted is a claim without contention.
type granted struct{}

func (granted) Creator(context.Context, taskpod.Pod, policy.Requester) (policy.Requester, error) {
	return policy.Requester{}, nil
}

func (granted) Take(context.Context, policy.Submission, bool) (policy.Decision, error) {
	return policy.Decision{Allowed: true}, nil
}

// BenchmarkDecision is a whole review without I/O, from the request's body to
// the answer's. The reviews are what Kubernetes 1.37 sent of two pods of
// Airflow's operator: one with few arguments (2.9 KiB), and the same with 60
// variables of 100 bytes each (14.4 KiB).
func BenchmarkDecision(b *testing.B) {
	nowhere := client.Client(nil)
	for _, pods := range []int{0, 50_000} {
		m := newMemory(b, pods)
		h := newHooks(m, nowhere, func(h *hooks) {
			h.guard.claims = granted{}
			h.guard.pods.index = m.pods
			h.guard.resolver.Objects.Live, h.stamp.resolver.Objects.Live = m, m
		})
		for _, of := range []struct {
			name    string
			handler admission.Handler
		}{{"stamp", &h.stamp}, {"guard", &h.guard}} {
			for _, pod := range []string{"plain", "large"} {
				b.Run(fmt.Sprintf("%s/pod=%s/pods=%d", of.name, pod, pods), func(b *testing.B) {
					handler := hooked(b.Context(), of.handler)
					body, err := os.ReadFile(filepath.Join("testdata", "reviews", pod+".json"))
					if err != nil {
						b.Fatal(err)
					}
					b.SetBytes(int64(len(body)))
					b.ReportAllocs()
					for b.Loop() {
						req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/?timeout=5s", bytes.NewReader(body))
						req.Header.Set("Content-Type", "application/json")
						answer := httptest.NewRecorder()
						handler.ServeHTTP(answer, req)
						if !strings.Contains(answer.Body.String(), `"allowed":true`) {
							b.Fatal(answer.Body)
						}
					}
				})
			}
		}
	}
}
