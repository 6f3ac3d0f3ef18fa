//go:build airflow

package airflow

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// outcome is what became of two Airflows that ran the same task.
type outcome struct {
	alpha, production string   // states of their tasks
	how               string   // in words, for the table
	foreign           []string // what production did to alpha's pod
	log               string   // of production's task
	left              []string
}

func (o outcome) String() string {
	return fmt.Sprintf("alpha %s, production %s, pods left: %v: %s", o.alpha, o.production, o.left, o.how)
}

// collide lets alpha run the task, and production too while alpha's pod is
// running; then it lets all pods succeed.
func collide(w *world, reattach bool, declared bool) outcome {
	w.Helper()
	settings := []string{"REATTACH=" + map[bool]string{true: "True", false: "False"}[reattach]}
	if declared {
		settings = append(settings, injected)
	}
	alpha := w.start("alpha", settings...)
	w.until("alpha's pod runs", w.onePodRuns)
	alphas := w.pods()[0]
	production := w.start("production", settings...)
	w.until("production is done or waits for a pod", func() bool {
		select {
		case <-production.Done():
			return true
		default:
			return strings.Contains(production.log(), "Found matching pod")
		}
	})
	alpha.endPods()
	production.endPods()
	o := outcome{alpha: alpha.wait()[taskID], production: production.wait()[taskID], log: production.log()}
	created := 0
	for _, a := range w.acts("production") {
		switch {
		case a.Verb == "create" && a.ResponseStatus.Code == 201:
			created++
		case a.ObjectRef.Name == alphas.Name:
			o.foreign = append(o.foreign, a.String())
		}
	}
	for _, pod := range w.pods() {
		owner := "production's"
		if pod.Name == alphas.Name {
			owner = "alpha's"
		}
		o.left = append(o.left, owner)
	}
	switch {
	case strings.Contains(o.log, "[DuplicateEnvironment]"):
		o.how = "rejected"
	case strings.Contains(o.log, "More than one pod running with labels"):
		o.how = "crashed"
	case created == 0:
		o.how = "attached"
	case slices.Contains(o.foreign, "delete 200"):
		o.how = "deleted alpha's pod"
	default:
		o.how = "own pod"
	}
	return o
}

func (w *world) onePodRuns() bool {
	pods := w.pods()
	return len(pods) == 1 && pods[0].Status.Phase == corev1.PodRunning
}

// atLeast compares with a provider's version.
func (r row) atLeast(version string) bool { return compareVersions(r.provider, version) >= 0 }

// config is a configuration of solepod.
func config(more string) string {
	return "apiVersion: solepod.io/v1alpha1\nkind: Configuration\n" + more
}

// What the real provider does with the incident, version by version, with and
// without solepod. The table in docs/environments.md is made of this.
func TestIncident(t *testing.T) {
	var table []string
	for _, r := range rows(t) {
		line := map[string]string{}
		for _, guarded := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s guarded=%v", r.provider, guarded), func(t *testing.T) {
				if guarded {
					solepod.Run(t, plane, solepod.Options{Config: config("")})
				}
				for name, c := range map[string]struct{ reattach, declared bool }{
					"reattach": {true, false}, "no-reattach": {false, false}, "declared": {true, true}, "declared-no-reattach": {false, true},
				} {
					if c.declared && !guarded {
						continue // solepod injects the declaration
					}
					t.Run(name, func(t *testing.T) {
						o := collide(newWorld(t, r, fmt.Sprintf("%s-%v", name, guarded)), c.reattach, c.declared)
						t.Log(o)
						if problem := unexpected(r, guarded, c.reattach, c.declared, o); problem != "" {
							t.Errorf("%s; the log of production's task:\n%s", problem, o.log)
						}
						line[fmt.Sprint(name, guarded)] = o.how
					})
				}
			})
		}
		table = append(table, fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |", r.provider,
			line["reattachfalse"], line["reattachtrue"], line["declaredtrue"], line["no-reattachfalse"], line["no-reattachtrue"], line["declared-no-reattachtrue"]))
	}
	compareTable(t, table)
}

// unexpected states how an outcome differs from the known behaviour of the provider
// and from the promise of solepod.
func unexpected(r row, guarded, reattach, declared bool, o outcome) string {
	want := ""
	switch {
	case declared:
		want = "own pod"
	case reattach:
		want = "attached"
	case guarded:
		want = "rejected"
	case r.atLeast("8.3.1"):
		want = "deleted alpha's pod"
	default:
		want = "crashed"
	}
	switch {
	case o.how != want:
		return fmt.Sprintf("%s, want %s", o, want)
	case want == "own pod" && (o.alpha != "success" || o.production != "success" || len(o.foreign) > 0):
		return fmt.Sprintf("both have a pod of their own: %s, %v", o, o.foreign)
	case want == "crashed" && (o.production != "failed" || !slices.Contains(o.left, "production's")):
		return fmt.Sprintf("no orphan: %s", o)
	case want == "crashed" && strings.Contains(o.log, "'NoneType' object has no attribute 'metadata'") == r.atLeast("8.0.1"):
		return "its cleanup crashes until 8.0.0"
	case want == "deleted alpha's pod" && (!slices.Contains(o.foreign, "delete 200") || o.alpha == "success"):
		return fmt.Sprintf("%s, %v", o, o.foreign)
	}
	if !guarded {
		return ""
	}
	for _, act := range o.foreign {
		if !strings.HasSuffix(act, " 403") && !strings.HasSuffix(act, " 404") {
			return fmt.Sprintf("production's Airflow did something to alpha's pod: %v", o.foreign)
		}
	}
	switch {
	case o.alpha != "success" || len(o.left) > 0:
		return fmt.Sprintf("alpha has been disturbed: %s", o)
	case want == "rejected" && (o.production != "failed" || len(o.foreign) > 0):
		return fmt.Sprintf("%s, %v", o, o.foreign)
	case want == "rejected" && !regexp.MustCompile(`solepod: another Airflow environment is already running this task\. .*\[DuplicateEnvironment\]`).MatchString(o.log):
		return "the message is not in one line of the log"
	}
	return ""
}

const (
	tableBegin = "<!-- From a run of make test-airflow. -->\n"
	tableEnd   = "<!-- End. -->\n"
)

var update = flag.Bool("update", false, "write what was found into README.md and pkg/taskpod/testdata")

// compareTable compares the lines of the table in README.md with what was found.
func compareTable(t *testing.T, found []string) {
	t.Helper()
	const file = "../../README.md"
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := strings.Cut(string(content), tableBegin)
	table, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		t.Fatalf("%s has no table", file)
	}
	for _, line := range found {
		provider := strings.Join(strings.SplitN(line, "|", 3)[:2], "|")
		was := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(provider) + `\|.*$`).FindString(table)
		switch {
		case was == line:
		case *update && was != "":
			table = strings.Replace(table, was, line, 1)
		case *update:
			table = strings.TrimRight(table, "\n") + "\n" + line + "\n\n"
		default:
			t.Errorf("%s says\n%s\nbut was found to be (test with -update)\n%s", file, was, line)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+tableBegin+table+tableEnd+after), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The test data of pkg/taskpod is what the providers say.
func TestVectors(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), r.python, "vectors.py")
			cmd.Env = environ(r.home)
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "{") { // else a warning
					lines = append(lines, line)
				}
			}
			file := "../../pkg/taskpod/testdata/provider-" + r.provider + ".jsonl"
			now := strings.Join(lines, "")
			if *update {
				if err := os.WriteFile(file, []byte(now), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			was, err := os.ReadFile(file)
			if err != nil || string(was) != now {
				t.Errorf("%s, %v, differs from what the provider says (test with -update)", file, err)
			}
		})
	}
}

// No legitimate pod is denied, and each denial has a cure.
func TestTasks(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			g := solepod.Run(t, plane, solepod.Options{Config: config("")})
			for _, kind := range []string{"mapped", "deferrable", "decorated", "job"} {
				t.Run(kind, func(t *testing.T) {
					if kind == "job" && !r.atLeast("8.3.1") || kind == "deferrable" && !r.atLeast("8.3.0") {
						t.Skipf("provider %s has it not, or its Airflow cannot test it", r.provider)
					}
					w := newWorld(t, r, kind)
					want, settings := 1, []string{"KIND=" + kind}
					if kind == "mapped" {
						want = 20
					} else {
						settings = append(settings, "POD_ENDS=Succeeded")
					}
					k := w.start("alpha", settings...)
					if kind == "mapped" {
						w.until("all pods are there at once", func() bool { return len(w.pods()) == want })
						k.endPods()
					}
					states := k.wait()
					succeeded := 0
					for _, state := range states {
						if state == "success" {
							succeeded++
						}
					}
					// Among the three pods of its own Job, the operator crashes now and
					// then before 10.0.0: "More than one pod running with labels".
					if succeeded != want && (kind != "job" || r.atLeast("10.0.0")) {
						t.Errorf("%v; the log:\n%s", states, k.log())
					}
					if kind == "job" {
						w.until("the Job has its three pods", func() bool {
							created := 0
							for _, a := range w.actsOf("system:serviceaccount:kube-system:job-controller") {
								if a.Verb == "create" && a.ResponseStatus.Code == 201 {
									created++
								}
							}
							return created == 3
						})
					}
					for _, a := range w.acts("alpha") {
						if a.ResponseStatus.Code == 403 {
							t.Errorf("%s of %s was rejected", a.Verb, a.ObjectRef.Name)
						}
					}
				})
			}
			t.Run("in flight", func(t *testing.T) { inFlight(newWorld(t, r, "in-flight")) })
			t.Run("worker", func(t *testing.T) { worker(newWorld(t, r, "worker")) })
			t.Run("foreign delete", func(t *testing.T) { foreignDelete(newWorld(t, r, "foreign-delete"), g) })
		})
	}
}

// taskID is the task of incident/dags/dag.py, and runLabel what all providers make of
// its run_id in a label.
const (
	taskID   = "foo-bar-task-id"
	runLabel = "manual__2023-03-08T0130000000-370e63718"
)

// While another pod of the task is only being created, the answer is a 409: the
// operator tries again by itself, and succeeds once that one is gone.
func inFlight(w *world) {
	w.Helper()
	id := taskpod.Identity{Namespace: w.jobs, DAG: "foo-bar-dag-id", Task: taskID, RunLabel: taskpod.LabelRun, Run: runLabel}
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
		Namespace: solepod.Namespace, Name: claim.Name(id),
		Annotations: map[string]string{
			"solepod.io/holders": fmt.Sprintf(`[{"pod":"x","uid":"x","environment":"alpha","try":"1","claimedAt":%q}]`, time.Now().UTC().Format(time.RFC3339)),
		},
	}}
	if err := plane.Admin.Create(w.Context(), lease); err != nil {
		w.Fatal(err)
	}
	k := w.start("production", "POD_ENDS=Succeeded", "REATTACH=False")
	created := func(code int) func() bool {
		return func() bool {
			return slices.ContainsFunc(w.acts("production"), func(a act) bool { return a.Verb == "create" && a.ResponseStatus.Code == code })
		}
	}
	w.until("production is told to wait", created(409))
	if err := plane.Admin.Delete(w.Context(), lease); err != nil {
		w.Fatal(err)
	}
	if state := k.wait()[taskID]; state != "success" || !created(201)() {
		w.Errorf("%s; the log:\n%s", state, k.log())
	}
}

// A worker of the KubernetesExecutor has the labels of the task that it works
// on, and never conflicts with it.
func worker(w *world) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "worker", Labels: map[string]string{
			"dag_id": "foo-bar-dag-id", "task_id": taskID, "run_id": runLabel, "try_number": "1",
			"kubernetes_executor": "True", "airflow-worker": "1",
		}},
		Spec: corev1.PodSpec{NodeName: fixture.NodeName, Containers: []corev1.Container{{Name: "base", Image: "airflow"}}},
	}
	if err := plane.Admin.Create(w.Context(), pod); err != nil {
		w.Fatal(err)
	}
	k := w.start("alpha", "POD_ENDS=Succeeded")
	if state := k.wait()[taskID]; state != "success" {
		w.Errorf("%s; the log:\n%s", state, k.log())
	}
	if pods := w.pods(); len(pods) != 1 || pods[0].Name != "worker" {
		w.Errorf("%d pods are left", len(pods))
	}
}

// production has taken alpha's pod for its own, and goes to clean up after
// alpha's worker has died: it is stopped.
func foreignDelete(w *world, g *solepod.Process) {
	w.Helper()
	alpha := w.start("alpha")
	w.until("alpha's pod runs", w.onePodRuns)
	pod := w.pods()[0]
	production := w.start("production")
	w.until("production has found alpha's pod", func() bool { return strings.Contains(production.log(), "Found matching pod "+pod.Name) })
	if err := alpha.Kill(); err != nil {
		w.Fatal(err)
	}
	w.end(pod)
	production.wait()
	denied := 0
	for _, a := range w.acts("production") {
		if a.ResponseStatus.Code != 403 || a.ObjectRef.Name != pod.Name {
			w.Errorf("%s of %s", a, a.ObjectRef.Name)
		}
		denied++
	}
	if denied == 0 {
		w.Errorf("production did not try; its log:\n%s", production.log())
	}
	if pods := w.pods(); len(pods) != 1 || pods[0].Name != pod.Name {
		w.Errorf("alpha's pod is gone: %d pods", len(pods))
	}
	w.until("an event tells", func() bool { // which depends on the first request of the operator
		for _, reason := range []string{"ForeignEnvironment", "ForeignCleanup"} {
			if events, err := solepod.Events(w.Context(), plane.Admin, &pod, reason); err == nil && len(events) == 1 {
				return true
			}
		}
		return false
	})
	metrics, err := g.Metrics(w.Context())
	counted := regexp.MustCompile(`(?m)^solepod_decisions_total\{.*reason="Foreign(Environment|Cleanup)".*\} [1-9]`)
	if err != nil || !counted.Match(metrics) {
		w.Errorf("not counted: %v\n%s", err, metrics)
	}
	log, err := os.ReadFile(g.Log)
	if err != nil || !strings.Contains(string(log), "reason=Foreign") || !strings.Contains(string(log), w.user("production")) {
		w.Errorf("solepod's log does not tell: %v", err)
	}
}

// An environment that does not declare itself, but must, gets the label to add.
func TestRequire(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			solepod.Run(t, plane, solepod.Options{Config: config("injection: Require\n")})
			w := newWorld(t, r, "require")
			k := w.start("production", "REATTACH=False")
			state := k.wait()[taskID]
			want := "solepod: the pod does not declare its environment, which environment production must"
			cure := "Label the namespace of its Airflow with solepod.io/declare=enabled and restart Airflow [EnvironmentNotDeclared]"
			if state != "failed" || !strings.Contains(k.log(), want) || !strings.Contains(k.log(), cure) {
				t.Errorf("%s; the log:\n%s", state, k.log())
			}
			declared := w.start("alpha", injected, "POD_ENDS=Succeeded")
			if state := declared.wait()[taskID]; state != "success" {
				t.Errorf("%s; the log:\n%s", state, declared.log())
			}
		})
	}
}

// A worker is killed while its pod runs. The retry attaches to that pod or, where
// it must not, gets a pod of its own, because solepod never rejects a later try.
func TestKilledWorker(t *testing.T) {
	for _, r := range rows(t) {
		for _, supersede := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s supersede=%v", r.provider, supersede), func(t *testing.T) {
				options := solepod.Options{Config: config("")}
				if supersede {
					options = solepod.Options{Config: config("retries: Supersede\n"), Values: []string{"config.retries=Supersede"}}
				}
				solepod.Run(t, plane, options)
				for _, reattach := range []string{"True", "False"} {
					t.Run("reattach "+reattach, func(t *testing.T) {
						w := newWorld(t, r, strings.ToLower(fmt.Sprintf("killed-%v-%s", supersede, reattach)))
						first := w.start("alpha", "REATTACH="+reattach)
						w.until("its pod runs", w.onePodRuns)
						if err := first.Kill(); err != nil {
							t.Fatal(err)
						}
						retry := w.start("alpha", "REATTACH="+reattach, "TRY=2")
						created := func() (n int) {
							for _, a := range w.acts("alpha") {
								if a.Verb == "create" && a.ResponseStatus.Code == 201 {
									n++
								}
							}
							return n
						}
						want := map[string]int{"True": 1, "False": 2}[reattach]
						w.until("the retry has its pod", func() bool {
							return created() == want && (want == 2 || strings.Contains(retry.log(), "Found matching pod"))
						})
						retry.endPods()
						state := retry.wait()[taskID]
						for _, a := range w.acts("alpha") {
							if a.ResponseStatus.Code == 403 {
								t.Errorf("%s of %s was rejected; the log:\n%s", a.Verb, a.ObjectRef.Name, retry.log())
							}
						}
						if n := created(); n != want {
							t.Errorf("%d pods, want %d; the log:\n%s", n, want, retry.log())
						}
						// With two pods of its own, a provider before 8.3.1 crashes. A
						// later one may delete the new pod instead of the old one: 9.0.1
						// does while both are starting. Superseding prevents that.
						if (reattach == "True" || supersede) && state != "success" {
							t.Errorf("%s; the log:\n%s", state, retry.log())
						}
					})
				}
			})
		}
	}
}

// endPods lets all pods succeed until the task is done.
func (k *task) endPods() {
	k.w.Helper()
	k.w.until("the task is done", func() bool {
		for _, pod := range k.w.pods() {
			k.w.end(pod)
		}
		select {
		case <-k.Done():
			return true
		default:
			return false
		}
	})
}

// The wheel declares the environment by its entry point alone.
func TestWheel(t *testing.T) {
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "python3", "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", dir, "../../manifests/airflow")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "solepod_airflow-*.whl"))
	if err != nil || len(wheels) != 1 {
		t.Fatal(wheels, err)
	}
	const use = `
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
try:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
except ImportError:  # an older provider
    from airflow.providers.cncf.kubernetes.operators.kubernetes_pod import KubernetesPodOperator
print("DECLARED", hasattr(KubernetesPodOperator._get_ti_pod_labels, "solepod"))
`
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			site := t.TempDir()
			if out, err := exec.CommandContext(t.Context(), r.python, "-m", "zipfile", "-e", wheels[0], site).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			cmd := exec.CommandContext(t.Context(), r.python, "-c", use)
			cmd.Env = environ(r.home, "PYTHONPATH="+site, "SOLEPOD_ENVIRONMENT=alpha")
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "DECLARED True") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
