package policy

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/solepod/solepod/pkg/taskpod"
)

// cluster is a namespace in which pods come, end and go, as admitted by Decide.
type cluster struct {
	settings Settings
	pods     []taskpod.Pod
	created  int
}

func (c *cluster) create(n taskpod.Pod) Decision {
	existing := make([]Existing, len(c.pods))
	for i, x := range c.pods {
		existing[i] = Existing{Pod: x}
	}
	d := Decide(Submission{Pod: n, Now: now}, existing, c.settings)
	if d.Allowed {
		for _, x := range d.Supersede { // marked, then deleted
			for i := range c.pods {
				if c.pods[i].Name == x.Name {
					c.pods[i].Labels[taskpod.LabelChecked] = taskpod.True
					c.pods[i].Deleting = true
				}
			}
		}
		c.pods = append(c.pods, n)
	}
	return d
}

// found lists what Airflow's find_pod returns when it looks for p.
func (c *cluster) found(p taskpod.Pod) []taskpod.Pod {
	selector := p.Selector(key)
	var out []taskpod.Pod
	for _, x := range c.pods {
		if selector.Matches(labels.Set(x.Labels)) {
			out = append(out, x)
		}
	}
	return out
}

// TestPromise plays arbitrary histories of two tasks, mapped or not, in up to
// three environments, declared, labelled, stamped or unknown. After each step, the selector of
// an admitted pod matches the pod itself. Any other pod that it matches is a retry
// of the same environment. Without retries, and with superseded ones, it matches
// exactly one pod.
func TestPromise(t *testing.T) {
	for _, retries := range []string{"none", "Allow", "Supersede"} {
		t.Run("retries "+retries, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				c := &cluster{settings: Settings{
					EnvironmentLabel: key,
					SupersedeRetries: retries == "Supersede",
				}}
				used := map[string]int{} // the newest try of an environment's task
				// A task is mapped or not in each environment, whatever it is in the others.
				mapped := map[string]bool{}
				for _, env := range []string{"", "alpha", "production", "beta"} {
					mapped[env] = rapid.Bool().Draw(t, "mapped in "+env)
				}
				t.Repeat(map[string]func(*rapid.T){
					"create": func(t *rapid.T) {
						env := rapid.SampledFrom([]string{"", "alpha!", "alpha~", "alpha?", "production!", "production~", "production?", "beta!"}).Draw(t, "environment")
						task := rapid.SampledFrom([]string{"task_id=one", "task_id=two"}).Draw(t, "task")
						index := ""
						if mapped[strings.TrimRight(env, "!~?")] {
							index = rapid.SampledFrom([]string{"map_index=0", "map_index=1"}).Draw(t, "index")
						}
						try := 1
						if retries != "none" {
							try = rapid.IntRange(1, 3).Draw(t, "try")
						}
						c.created++
						n := pod(fmt.Sprintf("pod-%d %s %s %s try_number=%d Pending", c.created, env, task, index, try))
						// Airflow counts the tries of a task up.
						id, _ := n.Identity()
						history := n.Environment(key) + " " + id.String()
						if retries == "none" && used[history] > 0 || try < used[history] {
							t.Skip("not a try that this environment could make")
						}
						if retries == "Supersede" && try == used[history] {
							t.Skip("the same try again is no newer try to supersede with")
						}
						if c.create(n).Allowed {
							used[history] = try
						}
					},
					"end":   c.onAny(func(p *taskpod.Pod) { p.Phase = corev1.PodSucceeded }),
					"kill":  c.onAny(func(p *taskpod.Pod) { p.Deleting = true }),
					"check": c.onAny(func(p *taskpod.Pod) { p.Labels[taskpod.LabelChecked] = taskpod.True }),
					"remove": func(t *rapid.T) {
						if len(c.pods) == 0 {
							t.Skip("no pods")
						}
						i := rapid.IntRange(0, len(c.pods)-1).Draw(t, "pod")
						c.pods = append(c.pods[:i:i], c.pods[i+1:]...)
					},
					"": func(t *rapid.T) {
						for _, p := range c.pods {
							if p.Checked() {
								continue // Airflow is done with it
							}
							self := false
							for _, x := range c.found(p) {
								switch {
								case x.Name == p.Name:
									self = true
								case retries != "Allow":
									t.Fatalf("looking for %v Airflow finds %v as well", p, x)
								case x.Environment(key) != p.Environment(key):
									t.Fatalf("looking for %v Airflow finds the other environment's %v", p, x)
								}
							}
							if !self {
								t.Fatalf("looking for %v Airflow does not find it", p)
							}
						}
					},
				})
			})
		})
	}
}

func (c *cluster) onAny(change func(*taskpod.Pod)) func(*rapid.T) {
	return func(t *rapid.T) {
		if len(c.pods) == 0 {
			t.Skip("no pods")
		}
		change(&c.pods[rapid.IntRange(0, len(c.pods)-1).Draw(t, "pod")])
	}
}

// The guard does not read the existing pods from the API server if it admits the new
// pod while they are live. That is correct because the end of a pod never turns an
// admission into a denial.
func TestAnEndedPodNeverStandsMoreInTheWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) taskpod.Pod {
			env := rapid.SampledFrom([]string{"", "alpha!", "alpha~", "alpha?", "production!", "production~", "production?"}).Draw(t, name+" environment")
			index := rapid.SampledFrom([]string{"", "map_index=0", "map_index=1"}).Draw(t, name+" index")
			return pod(fmt.Sprintf("%s %s %s try_number=%d", name, env, index, rapid.IntRange(1, 3).Draw(t, name+" try")))
		}
		s := Settings{EnvironmentLabel: key}
		n, x := Submission{Pod: draw("n"), Now: now}, draw("x")
		if !Decide(n, []Existing{{Pod: x}}, s).Allowed {
			t.Skip("denied")
		}
		x.Phase = corev1.PodFailed
		if d := Decide(n, []Existing{{Pod: x}}, s); !d.Allowed {
			t.Fatalf("admitted with a live pod, denied with an ended one: %s", d.Message)
		}
	})
}
