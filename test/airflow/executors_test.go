//go:build airflow

package airflow

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/solepod"
)

// Real schedulers run the task with real executors. The file is loaded in the process
// that runs the task, whichever that is. The table in docs/environments.md is made of
// what this test logs.
func TestExecutors(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			if r.provider != "9.0.1" {
				t.Skip("one generation of Airflow runs with executors, Airflow 2.10.5")
			}
			solepod.Run(t, plane, solepod.Options{Config: config("")})
			for executor, run := range map[string]func(*world) []string{
				"LocalExecutor": localExecutor, "CeleryExecutor": celeryExecutor, "KubernetesExecutor": kubernetesExecutor,
			} {
				t.Run(executor, func(t *testing.T) {
					w := newWorld(t, r, strings.ToLower(executor))
					loaded := run(w)
					slices.Sort(loaded)
					t.Logf("%s loads the file in:\n%s", executor, strings.Join(slices.Compact(loaded), "\n"))
				})
			}
		})
	}
}

// executor returns the environment variables of an Airflow with an executor.
func (w *world) executor(name, home string, env []string) []string {
	w.Helper()
	trace, err := filepath.Abs("trace")
	if err != nil {
		w.Fatal(err)
	}
	for i, variable := range env {
		if rest, is := strings.CutPrefix(variable, "PYTHONPATH="); is {
			env[i] = "PYTHONPATH=" + trace + ":" + rest
		}
	}
	return append(env,
		"AIRFLOW__CORE__EXECUTOR="+name, "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK=1",
		"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION=False", "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC=1",
		"AIRFLOW__LOGGING__BASE_LOG_FOLDER="+filepath.Join(home, "logs"), "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK=False",
		"TRACE="+filepath.Join(home, "trace"),
	)
}

// trigger runs the DAG of the incident, at the time of the incident.
func (w *world) trigger(env []string) {
	w.Helper()
	for _, arguments := range [][]string{{"dags", "reserialize"}, {"dags", "trigger", "--exec-date", "2023-03-08T01:30:00", "foo-bar-dag-id"}} {
		cmd := exec.CommandContext(w.Context(), w.python, append([]string{"-m", "airflow"}, arguments...)...)
		cmd.Env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "TRACE=") })
		if out, err := cmd.CombinedOutput(); err != nil {
			w.Fatalf("airflow %v: %v\n%s", arguments, err, out)
		}
	}
}

// finish waits for the pod of the task, which must be declared, lets it succeed, and
// waits for the success of the task. It returns what has loaded the file.
func (w *world) finish(home string, env []string) []string {
	w.Helper()
	logs := func() string {
		text := ""
		files, err := filepath.Glob(filepath.Join(home, "*.log"))
		if err != nil {
			w.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				w.Fatal(err)
			}
			text += fmt.Sprintf("=== %s\n%.20000s\n", file, content)
		}
		return text
	}
	w.Cleanup(func() {
		if w.Failed() {
			w.Log(logs())
		}
	})
	w.until("the pod of the task runs", w.onePodRuns)
	pod := w.pods()[0]
	if pod.Labels["airflow-environment"] != "alpha" || pod.Labels["solepod.io/declared"] != "v1" {
		w.Errorf("the pod is not declared: %v", pod.Labels)
	}
	w.end(pod)
	w.until("the pod is deleted", func() bool { return len(w.pods()) == 0 })
	w.until("the task has succeeded", func() bool {
		cmd := exec.CommandContext(w.Context(), w.python, "-m", "airflow", "tasks", "state", "foo-bar-dag-id", taskID, "2023-03-08T01:30:00")
		cmd.Env = slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "TRACE=") })
		out, err := cmd.Output()
		if err != nil || strings.Contains(string(out), "failed") {
			w.Fatalf("%v: %s", err, out)
		}
		return strings.Contains(string(out), "success")
	})
	content, err := os.ReadFile(filepath.Join(home, "trace"))
	if err != nil {
		w.Fatal(err)
	}
	var loaded []string
	for line := range strings.Lines(string(content)) {
		_, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		loaded = append(loaded, command)
	}
	return loaded
}

func localExecutor(w *world) []string {
	home, env := w.airflow("alpha", injected)
	env = w.executor("LocalExecutor", home, env)
	w.trigger(env)
	w.run(home, env, "scheduler", w.python, "-m", "airflow", "scheduler")
	w.run(home, env, "triggerer", w.python, "-m", "airflow", "triggerer", "--skip-serve-logs")
	return w.finish(home, env)
}

func celeryExecutor(w *world) []string {
	home, env := w.airflow("alpha", injected)
	env = append(w.executor("CeleryExecutor", home, env),
		"AIRFLOW__CELERY__BROKER_URL=sqla+sqlite:///"+filepath.Join(home, "broker.db"),
		"AIRFLOW__CELERY__RESULT_BACKEND=db+sqlite:///"+filepath.Join(home, "results.db"),
	)
	w.trigger(env)
	w.run(home, env, "scheduler", w.python, "-m", "airflow", "scheduler")
	w.run(home, env, "worker", w.python, "-m", "airflow", "celery", "worker", "--skip-serve-logs", "--concurrency", "1", "--without-mingle", "--without-gossip")
	return w.finish(home, env)
}

// kubernetesExecutor takes the place of a kubelet: it runs the command of the worker's pod,
// with the file where its mount puts it. The scheduler has no file.
func kubernetesExecutor(w *world) []string {
	home, env := w.airflow("alpha")
	namespace := w.name + "-alpha"
	if _, err := plane.Airflow(w.Context(), namespace, "airflow", namespace); err != nil {
		w.Fatal(err)
	}
	workerHome := filepath.Join(home, "worker")
	template := filepath.Join(home, "template.yaml")
	text := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: worker}\nspec:\n  serviceAccountName: airflow\n  restartPolicy: Never\n"+
		"  containers: [{name: base, image: apache/airflow, env: [{name: AIRFLOW_HOME, value: %s}]}]\n", workerHome)
	if err := os.WriteFile(template, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
	env = append(w.executor("KubernetesExecutor", home, env),
		"AIRFLOW__KUBERNETES_EXECUTOR__IN_CLUSTER=False", "AIRFLOW__KUBERNETES_EXECUTOR__CONFIG_FILE="+filepath.Join(home, "kubeconfig"),
		"AIRFLOW__KUBERNETES_EXECUTOR__NAMESPACE="+namespace, "AIRFLOW__KUBERNETES_EXECUTOR__POD_TEMPLATE_FILE="+template,
		"AIRFLOW__KUBERNETES_EXECUTOR__WORKER_CONTAINER_REPOSITORY=apache/airflow", "AIRFLOW__KUBERNETES_EXECUTOR__WORKER_CONTAINER_TAG=2.10.5",
	)
	w.trigger(env)
	w.run(home, env, "scheduler", w.python, "-m", "airflow", "scheduler")
	var worker corev1.Pod
	w.until("the executor has created its worker", func() bool {
		var list corev1.PodList
		if err := plane.Admin.List(w.Context(), &list, client.InNamespace(namespace), client.HasLabels{"airflow-worker"}); err != nil {
			w.Fatal(err)
		}
		if len(list.Items) == 0 {
			return false
		}
		worker = list.Items[0]
		return true
	})
	if err := os.CopyFS(workerHome, os.DirFS(w.home)); err != nil {
		w.Fatal(err)
	}
	w.mount(&worker, filepath.Join(workerHome, "plugins"))
	arguments := worker.Spec.Containers[0].Args
	if len(arguments) == 0 || arguments[0] != "airflow" {
		w.Fatalf("the worker runs %q", arguments)
	}
	own := append(slices.Clone(env), "AIRFLOW_HOME="+workerHome, "AIRFLOW__CORE__EXECUTOR=LocalExecutor",
		"AIRFLOW__CORE__PLUGINS_FOLDER="+filepath.Join(workerHome, "plugins")) // the default, without an airflow.cfg
	w.run(home, own, "worker", append([]string{w.python, "-m"}, arguments...)...)
	return w.finish(home, env)
}
