//go:build airflow

package airflow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/solepod/solepod/test/solepod"
)

// With the declaration, each environment has pods of its own, whatever the kind of
// the task and whatever else runs in Airflow.
func TestDeclared(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			solepod.Run(t, plane, solepod.Options{Config: config("")})
			for name, c := range map[string]struct {
				settings []string
				pods     int               // of each environment
				since    string            // provider
				labels   map[string]string // of the pods
				home     func(t *testing.T, home string)
				launcher string
				log      string // is in it
			}{
				"mapped":          {settings: []string{"KIND=mapped", "MAPPED=4"}, pods: 4},
				"decorated":       {settings: []string{"KIND=decorated"}},
				"deferrable":      {settings: []string{"KIND=deferrable"}, since: "8.3.0"}, // the older dag.test cannot defer
				"job":             {settings: []string{"KIND=job", "PODS=1", "HOLD=yes"}, since: "8.3.1"},
				"template":        {settings: []string{"KIND=template", injectedConfig}, labels: map[string]string{"team": "foo-bar-dag-id"}},
				"xcom":            {settings: []string{"KIND=xcom"}, labels: map[string]string{"team": "foo-bar-dag-id"}},
				"callable":        {settings: []string{"KIND=callable"}},
				"policy and hook": {settings: []string{"POLICY=yes"}, labels: map[string]string{"policy": "ran", "hook": "ran"}},
				"other plugins":   {home: otherPlugins, log: "Z IS LOADED"},
				"opentelemetry": {launcher: "opentelemetry-instrument", settings: []string{
					"TRACER=opentelemetry", "OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none",
				}},
				"ddtrace": {launcher: "ddtrace-run", settings: []string{
					"TRACER=ddtrace", "DD_INSTRUMENTATION_TELEMETRY_ENABLED=false", "DD_REMOTE_CONFIGURATION_ENABLED=false",
				}},
			} {
				t.Run(name, func(t *testing.T) {
					if c.since != "" && !r.atLeast(c.since) {
						t.Skipf("provider %s has it not, or its Airflow cannot test it", r.provider)
					}
					if _, err := os.Stat(r.installed(c.launcher)); err != nil {
						t.Skipf("the environment of this row has no %s", c.launcher)
					}
					w := newWorld(t, r, "declared-"+strings.ReplaceAll(name, " ", "-"))
					w.prepare, w.launcher = c.home, c.launcher
					settings := c.settings
					if !slices.Contains(settings, injectedConfig) {
						settings = append(slices.Clone(settings), injected)
					}
					if log := sideBySide(w, max(c.pods, 1), c.labels, settings); !strings.Contains(log, c.log) {
						t.Errorf("%q is not in the log:\n%s", c.log, log)
					}
				})
			}
		})
	}
}

// otherPlugins adds plugins of a user to that of solepod: one that works, and one
// that raises.
func otherPlugins(t *testing.T, home string) {
	t.Helper()
	for name, source := range map[string]string{
		"plugins/a_plugin.py": "from airflow.plugins_manager import AirflowPlugin\nclass A(AirflowPlugin):\n    name = 'a'\n",
		"plugins/broken.py":   "raise RuntimeError('this plugin is broken')\n",
		"plugins/z_plugin.py": "from airflow.plugins_manager import AirflowPlugin\nclass Z(AirflowPlugin):\n    name = 'z'\nprint('Z IS LOADED')\n",
	} {
		if err := os.MkdirAll(filepath.Join(home, "plugins"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, name), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// sideBySide runs the task in production while it runs in alpha, and requires that
// neither notices the other. It returns alpha's log.
func sideBySide(w *world, want int, labels map[string]string, settings []string) string {
	w.Helper()
	running := func(n int) []corev1.Pod {
		pods := w.pods()
		if len(pods) != n || slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Status.Phase != corev1.PodRunning }) {
			return nil
		}
		return pods
	}
	wait := func(k *task, n int) (pods []corev1.Pod) {
		w.until(fmt.Sprintf("%d pods run", n), func() bool {
			select {
			case <-k.Done():
				w.Fatalf("%s ended; its log:\n%s", k.environment, k.log())
			default:
			}
			pods = running(n)
			return pods != nil
		})
		return pods
	}
	alpha := w.start("alpha", settings...)
	alphas := map[string]bool{}
	for _, pod := range wait(alpha, want) {
		alphas[pod.Name] = true
	}
	production := w.start("production", settings...)
	for _, pod := range wait(production, 2*want) {
		expected := map[string]string{"airflow-environment": "production", "solepod.io/declared": "v1"}
		if alphas[pod.Name] {
			expected["airflow-environment"] = "alpha"
		}
		for key, value := range labels {
			expected[key] = value
		}
		for key, value := range expected {
			if pod.Labels[key] != value {
				w.Errorf("label %s of pod %s is %q, want %q", key, pod.Name, pod.Labels[key], value)
			}
		}
	}
	alpha.endPods()
	production.endPods()
	for _, k := range []*task{alpha, production} {
		for id, state := range k.wait() {
			if state != "success" {
				w.Errorf("%s of %s: %s; the log:\n%s", id, k.environment, state, k.log())
			}
		}
		for _, a := range w.acts(k.environment) {
			if name := a.ObjectRef.Name; name != "" && a.ObjectRef.Resource == "pods" && alphas[name] != (k.environment == "alpha") && a.Verb != "create" {
				w.Errorf("%s: %s of %s", k.environment, a, name)
			}
		}
	}
	return alpha.log()
}

// A task is retried after its Airflow declares itself, and after it does no longer.
// The retry finds the pod of the first try.
func TestRollout(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			solepod.Run(t, plane, solepod.Options{Config: config("")})
			for name, settings := range map[string][2][]string{
				"rollout":  {nil, {injected}},
				"rollback": {{injected}, nil},
			} {
				t.Run(name, func(t *testing.T) {
					w := newWorld(t, r, name)
					first := w.start("alpha", settings[0]...)
					w.until("its pod runs", w.onePodRuns)
					if err := first.Kill(); err != nil {
						t.Fatal(err)
					}
					retry := w.start("alpha", append(slices.Clone(settings[1]), "TRY=2")...)
					w.until("the retry has its pod", func() bool {
						return strings.Contains(retry.log(), "Found matching pod") || len(w.pods()) > 1
					})
					retry.endPods()
					created := 0
					for _, a := range w.acts("alpha") {
						if a.Verb == "create" && a.ResponseStatus.Code == 201 {
							created++
						}
					}
					if state := retry.wait()[taskID]; state != "success" || created != 1 {
						t.Errorf("%s, with %d pods; the log:\n%s", state, created, retry.log())
					}
				})
			}
		})
	}
}

// The pod of alpha's first try is drained, and production creates one of the same
// name. Alpha's retry finds a pod by the name that the first try has stored.
func TestFixedName(t *testing.T) {
	for _, r := range rows(t) {
		t.Run(r.provider, func(t *testing.T) {
			if !r.atLeast("10.20.0") {
				t.Skip("this provider stores no names")
			}
			solepod.Run(t, plane, solepod.Options{Config: config("")})
			for name, settings := range map[string][]string{"stamped": {"KIND=fixed"}, "declared": {"KIND=fixed", injected}} {
				t.Run(name, func(t *testing.T) {
					w := newWorld(t, r, "fixed-"+name)
					production := w.start("production", settings...)
					w.until("production's pod runs", w.onePodRuns)
					pod := w.pods()[0]
					retry := w.start("alpha", append(slices.Clone(settings), "TRY=2", "STORED="+pod.Namespace+"/"+pod.Name)...)
					w.until("alpha's retry has decided", func() bool {
						select {
						case <-retry.Done():
							return true
						default:
							return strings.Contains(retry.log(), "Reusing existing pod")
						}
					})
					production.endPods()
					retry.endPods()
					taken := strings.Contains(retry.log(), "Reusing existing pod '"+pod.Name+"'")
					refused := strings.Contains(retry.log(), "solepod: pod "+pod.Name+" belongs to environment production and is not taken")
					if declared := name == "declared"; taken == declared || refused != declared {
						t.Errorf("taken: %v, refused: %v; the log:\n%s", taken, refused, retry.log())
					}
					if state := production.wait()[taskID]; state != "success" {
						t.Errorf("production: %s; the log:\n%s", state, production.log())
					}
					for _, a := range w.acts("alpha") {
						if a.ResponseStatus.Code < 400 && a.ObjectRef.Name == pod.Name {
							t.Errorf("%s of %s", a, a.ObjectRef.Name)
						}
					}
				})
			}
		})
	}
}
