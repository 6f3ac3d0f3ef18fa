package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// Two Airflow releases and their task pods in ONE namespace: what tells them
// apart are the labels of their ServiceAccounts.
func TestTwoReleasesInOneNamespace(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "one")
	release := func(environment string) client.Client {
		c := w.as(w.jobs, "airflow-"+environment)
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.jobs, Name: "airflow-" + environment}}
		if err := w.admin.Patch(t.Context(), account, merge(fmt.Sprintf(`{"metadata":{"labels":{"airflow-environment":%q}}}`, environment))); err != nil {
			t.Fatal(err)
		}
		fixture.Eventually(t, func() error { // the guard's watch has seen the label
			probe := w.pod("probe run_id=probe-" + environment)
			err := c.Create(t.Context(), probe, client.DryRunAll)
			if got := probe.Labels["airflow-environment"]; err == nil && got != environment {
				err = fmt.Errorf("stamped %q", got)
			}
			return err
		})
		return c
	}
	alpha, production := release("alpha"), release("production")

	pod := w.mustCreate(alpha, "x")
	_, err := w.create(production, "y")
	if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
		t.Errorf("beside a stamped pod: %s", got)
	}
	if got := reasonIn(production.Delete(t.Context(), pod)); got != "403 Forbidden ForeignEnvironment" {
		t.Errorf("delete: %s", got)
	}
	for environment, c := range map[string]client.Client{"alpha": alpha, "production": production} {
		declared := w.mustCreate(c, environment+" run_id=declared "+environment+"!")
		if n := w.found(declared); n != 1 {
			t.Errorf("the selector of %s matches %d pods", environment, n)
		}
	}
}

// An Airflow outside the cluster is known by its user or group.
func TestConfiguredEnvironments(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: header + `
onError: Allow
environments:
  - name: outside
    users: [airflow@example.com]
    groups: [airflow-operators]
  - name: session
    users: [r/airflow/*]
  - name: other
    groups: [airflow-others]
    serviceAccounts: [configured-alpha/airflow]
`})
	w := newWorld(t, "configured")
	stamped := func(c client.Client, run string) string {
		t.Helper()
		pod := w.pod("x run_id=" + run)
		if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
			return err.Error()
		}
		return pod.Labels["airflow-environment"]
	}
	user := func(name string, groups ...string) client.Client {
		t.Helper()
		config, err := plane.User(name, append(groups, "system:masters")...)
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, config)
	}
	for want, c := range map[string]client.Client{
		"outside": user("airflow@example.com"),
		"other":   w.airflow("alpha"), // though the label of its namespace is alpha
		"":        user("jane"),
	} {
		if got := stamped(c, "stamp"); got != want {
			t.Errorf("stamped %q, want %q", got, want)
		}
	}
	if got := stamped(user("jane", "airflow-operators"), "group"); got != "outside" {
		t.Errorf("by group: %q", got)
	}
	both := user("jane", "airflow-operators", "airflow-others")
	_, err := w.create(both, "both run_id=both")
	if got := reasonIn(err); got != "403 Forbidden EnvironmentAmbiguous" || !strings.Contains(err.Error(), "Requested by jane, environment outside and other") {
		t.Errorf("in two environments: %v", err)
	}
	// A user name that ends in a session.
	for session, want := range map[string]string{"r/airflow/1": "session", "r/airflow/2": "session", "r/airflow2/1": ""} {
		if got := stamped(user(session), "session"); got != want {
			t.Errorf("%s: stamped %q, want %q", session, got, want)
		}
	}
	// It is in both: it may do to their pods what each of them may.
	pod := w.mustCreate(user("airflow@example.com"), "x")
	if got := reasonIn(user("jane", "airflow-others").Delete(t.Context(), pod)); got != "403 Forbidden ForeignEnvironment" {
		t.Errorf("by a user of another environment: %s", got)
	}
	if err := both.Delete(t.Context(), pod); err != nil {
		t.Error(err)
	}
}

// The label of an environment is put on, renamed and taken off while tasks run. An
// Airflow still has access to its own pods.
func TestRenamedEnvironment(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "renamed")
	alpha, production := w.airflow("alpha"), w.airflow("production")
	other := w.as(w.prefix+"-alpha", "triggerer") // another account of the same Airflow
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.prefix + "-alpha"}}
	runs := 0
	for _, change := range []struct{ from, to string }{{`"alpha"`, `"beta"`}, {`"beta"`, "null"}, {"null", `"gamma"`}} {
		label := func(value string) {
			t.Helper()
			if err := w.admin.Patch(t.Context(), namespace, merge(`{"metadata":{"labels":{"airflow-environment":`+value+`}}}`)); err != nil {
				t.Fatal(err)
			}
			want := strings.Trim(value, `"`)
			if value == "null" {
				want = ""
			}
			fixture.Eventually(t, func() error { // the guard's watch has seen the label
				probe := w.pod("probe run_id=probe")
				err := alpha.Create(t.Context(), probe, client.DryRunAll)
				if got := probe.Labels["airflow-environment"]; err == nil && got != want {
					err = fmt.Errorf("stamped %q", got)
				}
				return err
			})
		}
		label(change.from)
		runs++
		run := fmt.Sprintf(" run_id=run-%d", runs)
		old := w.mustCreate(alpha, fmt.Sprintf("old-%d", runs)+run)
		label(change.to)
		if _, err := w.create(production, "foreign"+run); !strings.HasPrefix(reasonIn(err), "403 Forbidden DuplicateEnvironment") {
			t.Errorf("%v: production: %v", change, err)
		}
		if old.Labels["airflow-environment"] != "" {
			if got := reasonIn(production.Delete(t.Context(), old)); got != "403 Forbidden ForeignEnvironment" {
				t.Errorf("%v: production's delete: %s", change, got)
			}
		}
		if _, err := w.create(alpha, "again"+run); !strings.HasPrefix(reasonIn(err), "403 Forbidden DuplicateTry") {
			t.Errorf("%v: the same try: %v", change, err)
		}
		w.mustCreate(alpha, fmt.Sprintf("retry-%d try_number=2", runs)+run)
		if change.to != "null" {
			w.mustCreate(other, fmt.Sprintf("third-%d try_number=3", runs)+run)
		}
		if err := alpha.Patch(t.Context(), old, merge(`{"metadata":{"labels":{"already_checked":"True"}}}`)); err != nil {
			t.Errorf("%v: %v", change, err)
		}
		if err := alpha.Delete(t.Context(), old); err != nil {
			t.Errorf("%v: %v", change, err)
		}
	}
}

// The label of the pod's namespace is a guess. It contradicts no declaration.
func TestGuessedEnvironment(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: header + "injection: Require\n"})
	w := newWorld(t, "guessed")
	jobs := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.jobs}}
	if err := w.admin.Patch(t.Context(), jobs, merge(`{"metadata":{"labels":{"airflow-environment":"production"}}}`)); err != nil {
		t.Fatal(err)
	}
	config, err := plane.User("hosted", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	hosted := newClient(t, config)
	fixture.Eventually(t, func() error {
		err := hosted.Create(t.Context(), w.pod("x run_id=wait"), client.DryRunAll)
		if got := reasonIn(err); got != "403 Forbidden EnvironmentNotDeclared" {
			return fmt.Errorf("%s: %w", got, err)
		}
		if !strings.Contains(err.Error(), "environment production (a guess: the label of the namespace of the pod)") {
			t.Error(err)
		}
		return nil
	})
	for _, environment := range []string{"alpha", "production"} { // two Airflows behind one user
		pod := w.mustCreate(hosted, environment+" "+environment+"!")
		if n := w.found(pod); n != 1 {
			t.Errorf("the selector of %s matches %d pods", environment, n)
		}
	}
}

// A label from a pod template, a pod_mutation_hook or another webhook is no
// declaration: Airflow's selector does not contain it.
func TestLabelledIsNotDeclared(t *testing.T) {
	shared.Run(t, plane)
	w := newWorld(t, "labelled")
	w.mustCreate(w.airflow("alpha"), "x alpha?")
	_, err := w.create(w.airflow("production"), "y production!")
	if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" || !strings.Contains(err.Error(), "environment alpha (labelled, not declared)") {
		t.Errorf("%v", err)
	}
	_, err = w.create(w.airflow("production"), "y production?")
	if got := reasonIn(err); got != "403 Forbidden DuplicateEnvironment" {
		t.Errorf("%v", err)
	}
}

// The rows of the table on retries, superseding.
func TestSupersede(t *testing.T) {
	shared.Own(t, plane, solepod.Options{Config: header + "retries: Supersede\n", Values: []string{"config.retries=Supersede"}})
	for i, row := range []struct {
		name     string
		existing string // environment, pod
		state    string
		incoming string
		want     string
		after    string // of the existing pod
	}{
		{"a live earlier try", "alpha x", "Running", "alpha n try_number=2", "admit", "checked and deleted"},
		{"a finished earlier try", "alpha x", "Succeeded", "alpha n try_number=2", "admit", "checked and deleted"},
		{"declared", "alpha x alpha!", "Running", "alpha n try_number=2 alpha!", "admit", "checked and deleted"},
		{"the same try", "alpha x", "Running", "alpha n", "403 Forbidden DuplicateTry", "untouched"},
		{"the same try, finished", "alpha x", "Failed", "alpha n", "admit", "untouched"},
		{"an earlier try", "alpha x try_number=2", "Running", "alpha n", "403 Forbidden DuplicateTry", "untouched"},
		{"another environment's", "alpha x", "Running", "production n try_number=2", "403 Forbidden DuplicateEnvironment", "untouched"},
		{"another environment's, declared", "alpha x alpha!", "Running", "production n try_number=2 production!", "admit", "untouched"},
		{"another environment's, finished", "alpha x", "Failed", "production n try_number=2", "409 Conflict LeftoverEnvironment", "untouched"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWorld(t, fmt.Sprintf("supersede-%d", i))
			environment, line, _ := strings.Cut(row.existing, " ")
			// A finalizer keeps it, to see what was done to it.
			pod := w.pod(line)
			pod.Finalizers = []string{"test.solepod.io/hold"}
			if err := w.airflow(environment).Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			w.setState(pod, row.state)
			state := func() string {
				t.Helper()
				if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
					t.Fatal(err)
				}
				switch checked, deleted := pod.Labels["already_checked"] == "True", pod.DeletionTimestamp != nil; {
				case checked && deleted:
					return "checked and deleted"
				case !checked && !deleted:
					return "untouched"
				default:
					return fmt.Sprintf("checked %v, deleted %v", checked, deleted)
				}
			}
			environment, line, _ = strings.Cut(row.incoming, " ")
			incoming := w.airflow(environment)
			if got := reasonIn(incoming.Create(t.Context(), w.pod(line), client.DryRunAll)); got != row.want || state() != "untouched" {
				t.Errorf("dry run: %s, %s", got, state())
			}
			_, err := w.create(incoming, line)
			if got := reasonIn(err); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
			if got := state(); got != row.after {
				t.Errorf("the existing pod is %s, want %s", got, row.after)
			}
			if err := w.admin.Patch(t.Context(), pod, merge(`{"metadata":{"finalizers":null}}`)); err != nil {
				t.Error(err)
			}
		})
	}
}
