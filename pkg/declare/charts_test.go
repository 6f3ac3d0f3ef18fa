package declare

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Which containers of Airflow's charts get the file, and where. The others get nothing: log
// groomers, git-sync, Kerberos, statsd, Redis, pgbouncer. Jobs, flower and log-cleanup of
// the community's chart need no file. It does no harm there.
func TestCharts(t *testing.T) {
	want := map[string]string{}
	for chart, expected := range map[string]struct{ folder, containers string }{
		"astronomer": {"/usr/local/airflow/plugins", `
			create-user/create-user run-airflow-migrations/run-airflow-migrations scheduler/scheduler triggerer/triggerer
			webserver/webserver worker-of-the-kubernetes-executor/base`},
		"bitnami": {"/opt/bitnami/airflow/plugins", `
			dag-processor/airflow-dag-processor scheduler/airflow-scheduler setup-db/setup-db triggerer/airflow-triggerer
			web/airflow-web worker/airflow-worker`},
		"bitnami-kubernetes": {"/opt/bitnami/airflow/plugins", `
			dag-processor/airflow-dag-processor scheduler/airflow-scheduler setup-db/setup-db triggerer/airflow-triggerer
			web/airflow-web worker-of-the-kubernetes-executor/base`},
		"community": {"/opt/airflow/plugins", `
			db-migrations/db-migrations flower/airflow-flower scheduler/airflow-scheduler scheduler/log-cleanup
			sync-users/sync-airflow-users triggerer/airflow-triggerer web/airflow-web worker/airflow-worker
			worker/log-cleanup worker-of-the-kubernetes-executor/base`},
		"official-airflow2": {"/opt/airflow/plugins", `
			create-user/create-user run-airflow-migrations/run-airflow-migrations scheduler/scheduler triggerer/triggerer
			webserver/webserver worker/worker worker-of-the-kubernetes-executor/base`},
		"official-airflow3": {"/opt/airflow/plugins", `
			api-server/api-server create-user/create-user dag-processor/dag-processor
			run-airflow-migrations/run-airflow-migrations scheduler/scheduler triggerer/triggerer worker/worker
			worker-of-the-kubernetes-executor/base`},
	} {
		for _, container := range strings.Fields(expected.containers) {
			want[chart+"/"+container] = expected.folder
		}
	}
	files, err := filepath.Glob("testdata/charts/*.yaml")
	if err != nil || len(files) != 6 {
		t.Fatal(files, err)
	}
	got := map[string]string{}
	for _, file := range files {
		for _, object := range pods(t, file) {
			raw, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			pod, err := Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			injection, problems := Plan(pod, "airflow-environment", "alpha")
			if len(problems) > 0 {
				t.Errorf("%s: %s: %q", file, object.Name, problems)
			}
			if injection == nil {
				continue
			}
			for i, mounts := range injection.Mounts {
				name := strings.Join([]string{strings.TrimSuffix(filepath.Base(file), ".yaml"), strings.TrimPrefix(object.Name, "airflow-"), object.Spec.Containers[i].Name}, "/")
				got[name] = filepath.Dir(mounts[0].MountPath)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// pods reads the pods of a file.
func pods(t *testing.T, file string) []corev1.Pod {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []corev1.Pod
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 1<<10); ; {
		var pod corev1.Pod
		err := decoder.Decode(&pod)
		if errors.Is(err, io.EOF) {
			return slices.DeleteFunc(out, func(p corev1.Pod) bool { return p.Name == "" })
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out = append(out, pod)
	}
}
