package installation

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestConfiguration(t *testing.T) {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "solepod-system", Name: "solepod"}}
	for content, want := range map[string]string{
		"":                                  "airflow-environment true",
		"environmentLabel: example.org/env": "example.org/env true",
		"enviromentLabel: x":                "",
	} {
		m.Data = map[string]string{"config.yaml": "apiVersion: solepod.io/v1alpha1\nkind: Configuration\n" + content}
		cfg, found, err := Configuration(t.Context(), fake.NewClientBuilder().WithObjects(m).Build(), "solepod-system")
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "ConfigMap solepod-system/solepod") {
				t.Errorf("%q: %v", content, err)
			}
		} else if got := fmt.Sprint(cfg.EnvironmentLabel, " ", found); err != nil || got != want {
			t.Errorf("%q: %s %v", content, got, err)
		}
	}
	if _, found, err := Configuration(t.Context(), fake.NewClientBuilder().Build(), "solepod-system"); err != nil || found {
		t.Error(found, err)
	}
}
