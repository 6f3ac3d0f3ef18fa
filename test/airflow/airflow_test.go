//go:build airflow

// Package airflow lets two real Airflows, of six generations of the Kubernetes
// provider, run the same task in one namespace of a real control plane, with and
// without solepod.
package airflow

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
)

var (
	only  = flag.String("rows", "", "providers to test, separated by commas; all of requirements/ if empty")
	plane *controlplane.ControlPlane
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true, Node: true, Audit: true}))
}

// row is an installed Airflow.
type row struct {
	provider string
	python   string
	// home is a folder with an initialized metadata database, to be copied.
	home string
}

// allRows are the providers in requirements/.
func allRows(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("requirements/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no requirements: %v", err)
	}
	var providers []string
	for _, file := range files {
		providers = append(providers, strings.TrimSuffix(filepath.Base(file), ".txt"))
	}
	return providers
}

// rows installs the selected providers and returns them, oldest first.
func rows(t *testing.T) []row {
	t.Helper()
	providers := allRows(t)
	if *only != "" {
		providers = strings.Split(*only, ",")
	}
	slices.SortFunc(providers, compareVersions)
	var out []row
	for _, provider := range providers {
		cmd := exec.CommandContext(t.Context(), "./environment", provider)
		cmd.Stderr = os.Stderr
		python, err := cmd.Output()
		if err != nil {
			t.Fatalf("installing %s: %v", provider, err)
		}
		r := row{provider: provider, python: strings.TrimSpace(string(python)), home: filepath.Join(plane.Dir, "airflow-"+provider)}
		r.initialize(t)
		out = append(out, r)
	}
	return out
}

// installed is the path of a program in the environment of the row.
func (r row) installed(program string) string { return filepath.Join(filepath.Dir(r.python), program) }

func compareVersions(a, b string) int {
	var x, y [3]int
	_, errA := fmt.Sscanf(a, "%d.%d.%d", &x[0], &x[1], &x[2])
	_, errB := fmt.Sscanf(b, "%d.%d.%d", &y[0], &y[1], &y[2])
	if errA != nil || errB != nil {
		return strings.Compare(a, b)
	}
	return slices.Compare(x[:], y[:])
}

// initialize makes the metadata database, once a control plane.
func (r row) initialize(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(r.home); err == nil {
		return
	}
	var out []byte
	for _, command := range []string{"migrate", "init"} { // before 2.7.0, there is only init
		cmd := exec.CommandContext(t.Context(), r.python, "-m", "airflow", "db", command)
		cmd.Env = environ(r.home)
		var err error
		if out, err = cmd.CombinedOutput(); err == nil {
			return
		}
	}
	t.Fatalf("initializing Airflow's database: %s", out)
}

// environ is the environment of all that is Airflow.
func environ(home string, more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AIRFLOW") })
	return append(append(env,
		"AIRFLOW_HOME="+home,
		"AIRFLOW__CORE__LOAD_EXAMPLES=False",
		"AIRFLOW__CORE__DAGS_FOLDER="+home,
		"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=sqlite:///"+filepath.Join(home, "airflow.db")+"?timeout=60", // others may be writing
		"PYTHONUNBUFFERED=1", "NO_COLOR=1",
	), more...)
}

// world is a namespace for task pods, and one for each Airflow.
type world struct {
	*testing.T
	row
	name string
	jobs string
	// prepare changes the home of each Airflow; may be nil.
	prepare func(t *testing.T, home string)
	// launcher is the program that starts Python, or "".
	launcher string
}

func newWorld(t *testing.T, r row, name string) *world {
	t.Helper()
	name = strings.ReplaceAll(r.provider, ".", "-") + "-" + name
	w := &world{T: t, row: r, name: name, jobs: name + "-jobs"}
	for _, environment := range []string{"alpha", "production", "jobs"} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + environment}}
		if environment != "jobs" {
			namespace.Labels = map[string]string{"airflow-environment": environment, "solepod.io/declare": "enabled"}
		}
		if err := plane.Admin.Create(t.Context(), namespace); err != nil {
			t.Fatal(err)
		}
	}
	// For the KubernetesJobOperator.
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "jobs"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"batch"}, Resources: []string{"jobs", "jobs/status"},
			Verbs: []string{"create", "get", "list", "watch", "patch", "delete"},
		}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "jobs"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "jobs"},
		Subjects: []rbacv1.Subject{
			{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:serviceaccounts:" + name + "-alpha"},
			{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:serviceaccounts:" + name + "-production"},
		},
	}
	for _, object := range []client.Object{role, binding} {
		if err := plane.Admin.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// user is the user name of an environment's Airflow.
func (w *world) user(environment string) string {
	return "system:serviceaccount:" + w.name + "-" + environment + ":airflow"
}

// task is a task that an Airflow is running.
type task struct {
	*controlplane.Process
	w           *world
	environment string
}

// airflow makes the home of an environment's Airflow, with its own metadata database and
// its own ServiceAccount, and returns the environment variables of its processes.
func (w *world) airflow(environment string, settings ...string) (home string, env []string) {
	w.Helper()
	home = filepath.Join(w.TempDir(), environment)
	if err := os.CopyFS(home, os.DirFS(w.home)); err != nil {
		w.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(w.home, "airflow.cfg"))
	if err == nil {
		err = os.WriteFile(filepath.Join(home, "airflow.cfg"), []byte(strings.ReplaceAll(string(config), w.home, home)), 0o600)
	}
	if err != nil {
		w.Fatal(err)
	}
	identity, err := plane.Airflow(w.Context(), w.name+"-"+environment, "airflow", w.jobs)
	if err != nil {
		w.Fatal(err)
	}
	kubeconfig := filepath.Join(home, "kubeconfig")
	if err := controlplane.WriteKubeconfig(identity, kubeconfig); err != nil {
		w.Fatal(err)
	}
	for _, setting := range settings {
		if folder, injects := strings.CutPrefix(setting, "TEST_INJECTED="); injects {
			w.inject(environment, home, folder)
		}
	}
	if w.prepare != nil {
		w.prepare(w.T, home)
	}
	incident, err := filepath.Abs("incident")
	if err != nil {
		w.Fatal(err)
	}
	return home, environ(home, append([]string{
		"AIRFLOW__CORE__DAGS_FOLDER=" + filepath.Join(incident, "dags"), // Airflow 3 runs only what it finds there
		"PYTHONPATH=" + incident, "KUBECONFIG=" + kubeconfig, "NAMESPACE=" + w.jobs,
		"LOGICAL_DATE=2023-03-08T01:30:00",
	}, settings...)...)
}

// start has an environment's Airflow run the task of incident/dags.
func (w *world) start(environment string, settings ...string) *task {
	w.Helper()
	home, env := w.airflow(environment, settings...)
	incident, err := filepath.Abs("incident")
	if err != nil {
		w.Fatal(err)
	}
	command := []string{w.python, filepath.Join(incident, "run.py"), filepath.Join(incident, "dags", "dag.py")}
	if w.launcher != "" {
		command = slices.Insert(command, 0, w.installed(w.launcher))
	}
	return &task{w.run(home, env, "task", command...), w, environment}
}

// run starts a process of an Airflow, which ends with the test.
func (w *world) run(home string, env []string, name string, command ...string) *controlplane.Process {
	w.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = env
	process, err := controlplane.StartProcess(cmd, filepath.Join(home, name+".log"))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := process.Kill(); err != nil {
			w.Error(err)
		}
	})
	return process
}

// Settings with which solepod makes the Airflow declare its environment: by a file in
// its plugins folder or, because that has a volume, in its configuration folder.
const (
	injected       = "TEST_INJECTED=plugins"
	injectedConfig = "TEST_INJECTED=config"
)

// inject creates a pod of an Airflow through the API server, and puts the files that
// solepod has mounted into it where the mounts put them.
func (w *world) inject(environment, home, folder string) {
	w.Helper()
	worker := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.name + "-" + environment, GenerateName: "worker-"},
		Spec: corev1.PodSpec{ServiceAccountName: "airflow", Containers: []corev1.Container{{
			Name: "worker", Image: "apache/airflow", Args: []string{"airflow", "celery", "worker"}, Env: []corev1.EnvVar{{Name: "AIRFLOW_HOME", Value: home}},
		}}},
	}
	if folder == "config" {
		worker.Spec.Volumes = []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		worker.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: filepath.Join(home, "plugins")}}
	}
	if err := plane.Admin.Create(w.Context(), worker); err != nil {
		w.Fatal(err)
	}
	w.mount(worker, filepath.Join(home, folder))
}

// mount does what a kubelet does with the volume of solepod. All files must be in
// a folder.
func (w *world) mount(pod *corev1.Pod, folder string) {
	w.Helper()
	contents := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		if v.Name != "solepod-declare" {
			continue
		}
		for _, item := range v.DownwardAPI.Items {
			key := strings.TrimSuffix(strings.TrimPrefix(item.FieldRef.FieldPath, "metadata.annotations['"), "']")
			contents[item.Path] = pod.Annotations[key]
		}
	}
	mounted := 0
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		if m.Name != "solepod-declare" {
			continue
		}
		mounted++
		if !strings.HasPrefix(m.MountPath, folder+"/") || contents[m.SubPath] == "" {
			w.Fatalf("%s of %q is mounted at %s", m.SubPath, contents[m.SubPath], m.MountPath)
		}
		if err := os.MkdirAll(filepath.Dir(m.MountPath), 0o700); err != nil {
			w.Fatal(err)
		}
		if err := os.WriteFile(m.MountPath, []byte(contents[m.SubPath]), 0o600); err != nil {
			w.Fatal(err)
		}
	}
	if mounted == 0 {
		w.Fatal("solepod has not injected the file")
	}
}

func (k *task) log() string {
	k.w.Helper()
	log, err := os.ReadFile(k.Log)
	if err != nil {
		k.w.Fatal(err)
	}
	return string(log)
}

// wait waits for the end and returns the states of the task's instances, or
// what else became of it.
func (k *task) wait() map[string]string {
	k.w.Helper()
	select {
	case <-k.Done():
	case <-time.After(3 * time.Minute):
		k.w.Fatalf("%s's Airflow does not end; its log:\n%s", k.environment, k.log())
	}
	result := regexp.MustCompile(`(?m)^RESULT (.*)$`).FindStringSubmatch(k.log())
	states := map[string]string{}
	if result == nil {
		k.w.Fatalf("%s's Airflow ended with %v; its log:\n%s", k.environment, k.Err(), k.log())
	} else if err := json.Unmarshal([]byte(result[1]), &states); err != nil {
		k.w.Fatal(err)
	}
	return states
}

// pods are the pods of the namespace for task pods that are not being deleted.
func (w *world) pods() []corev1.Pod {
	w.Helper()
	var list corev1.PodList
	if err := plane.Admin.List(w.Context(), &list, client.InNamespace(w.jobs)); err != nil {
		w.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// until waits for a condition: 20 processes of Airflow 3 at once take minutes on a
// busy machine.
func (w *world) until(what string, condition func() bool) {
	w.Helper()
	err := wait.PollUntilContextTimeout(w.Context(), 100*time.Millisecond, 10*time.Minute, true, func(context.Context) (bool, error) {
		return condition(), nil
	})
	if err != nil {
		w.Fatalf("waiting until %s: %v", what, err)
	}
}

// end lets a pod succeed.
func (w *world) end(pod corev1.Pod) {
	w.Helper()
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"Succeeded"}}}`, controlplane.AnnotationEnd)
	if err := client.IgnoreNotFound(plane.Admin.Patch(w.Context(), &pod, client.RawPatch(types.MergePatchType, patch))); err != nil {
		w.Fatal(err)
	}
}

// act is a write to a pod, by the API server's audit log.
type act struct {
	Verb      string `json:"verb"`
	ObjectRef struct {
		Resource  string `json:"resource"`
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"objectRef"`
	User struct {
		Username string `json:"username"`
	} `json:"user"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
}

func (a act) String() string {
	return fmt.Sprintf("%s %d", a.Verb, a.ResponseStatus.Code)
}

// acts are what an environment's Airflow did in this world, oldest first.
func (w *world) acts(environment string) []act {
	w.Helper()
	return w.actsOf(w.user(environment))
}

func (w *world) actsOf(user string) []act {
	w.Helper()
	file, err := os.Open(plane.AuditLog)
	if err != nil {
		w.Fatal(err)
	}
	defer func() {
		if err := file.Close(); err != nil {
			w.Error(err)
		}
	}()
	var out []act
	for reader := bufio.NewReader(file); ; {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF { //nolint:errorlint // as documented; a line may be only half written
			return out
		}
		var a act
		if err == nil {
			err = json.Unmarshal(line, &a)
		}
		if err != nil {
			w.Fatal(err)
		}
		if a.ObjectRef.Namespace == w.jobs && a.User.Username == user {
			out = append(out, a)
		}
	}
}
