package taskpod

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
)

// What five generations of the real provider, with the plugin that declares the
// environment, make of awkward dag, task and run ids: the labels of the pod, and
// the selector for it. test/airflow/vectors.py recorded it, and make test-airflow
// compares.
func TestWhatTheProviderDoes(t *testing.T) {
	files, err := filepath.Glob("testdata/provider-*.jsonl")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			identities := map[Identity]string{}
			lines := bufio.NewScanner(f)
			for lines.Scan() {
				var recorded struct {
					Name     string            `json:"name"`
					Labels   map[string]string `json:"labels"`
					Selector string            `json:"selector"`
				}
				if err := json.Unmarshal(lines.Bytes(), &recorded); err != nil {
					t.Fatal(err)
				}
				if !valid(recorded.Labels) {
					// Of a name without any letter that a label can have, the
					// provider makes a value that the API server refuses.
					if !strings.Contains(recorded.Name, "unicode") {
						t.Errorf("%s: labels %v", recorded.Name, recorded.Labels)
					}
					continue
				}
				pod := Pod{Namespace: "jobs", Labels: recorded.Labels}
				id, ok := pod.Identity()
				if !ok {
					t.Errorf("%s: %v is no task pod", recorded.Name, recorded.Labels)
				}
				if other, taken := identities[id]; taken {
					t.Errorf("%s and %s are the same task", recorded.Name, other)
				}
				identities[id] = recorded.Name
				want, err := labels.Parse(recorded.Selector)
				if err != nil {
					t.Fatal(err)
				}
				if got := pod.Selector(DefaultEnvironmentLabel).String(); got != want.String() {
					t.Errorf("%s: selector\n%s, the provider's is\n%s", recorded.Name, got, want)
				}
			}
			if err := lines.Err(); err != nil || len(identities) == 0 {
				t.Errorf("%d recorded, %v", len(identities), err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func valid(labels map[string]string) bool {
	for _, value := range labels {
		if len(validation.IsValidLabelValue(value)) > 0 {
			return false
		}
	}
	return true
}
