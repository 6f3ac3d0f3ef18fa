// Package faults breaks the dependencies of solepod one by one, and checks that the
// effects are those in docs/operations.md.
package faults

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// jobs is the namespace of all task pods; each test has runs of its own.
const jobs = "data-jobs"

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane, controlplane.Options{ControllerManager: true}))
}

// pod returns a pod of a task that is told apart by its run. The words are those
// of package fixture.
func pod(run, name string, words ...string) *corev1.Pod {
	return fixture.Pod(jobs, strings.Join(append([]string{name, "run_id=" + run}, words...), " "))
}

// race creates n pods of one task at the same moment, one half in each
// environment, and returns the answers.
func race(t *testing.T, clients map[string]client.Client, run string, n int) []error {
	t.Helper()
	environments := slices.Sorted(maps.Keys(clients))
	answers := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			answers[i] = clients[environments[i%len(environments)]].Create(t.Context(), pod(run, fmt.Sprintf("%s-%d", run, i)))
		})
	}
	all.Wait()
	return answers
}

// podsOf returns the names of a run's pods.
func podsOf(t *testing.T, run string) []string {
	t.Helper()
	names := []string{}
	for _, pod := range solepod.PodsOf(t, plane, jobs, run) {
		names = append(names, pod.Name)
	}
	return names
}

// outcome is the status of an answer and, of a denial, the reason; "admitted"
// for no error. An error of the API server for a webhook that has timed out is neither,
// and returned in full.
func outcome(err error) string {
	if err == nil {
		return "admitted"
	}
	status, ok := err.(apierrors.APIStatus)
	ours := regexp.MustCompile(`^admission webhook "\w+\.solepod\.io" denied the request: solepod`).MatchString(err.Error())
	if !ok || !ours {
		return err.Error()
	}
	code := fmt.Sprint(status.Status().Code)
	if reason := regexp.MustCompile(`\[(\w+)\]$`).FindStringSubmatch(err.Error()); reason != nil {
		return code + " " + reason[1]
	}
	return code
}

// tally counts outcomes.
func tally(answers []error) map[string]int {
	out := map[string]int{}
	for _, err := range answers {
		out[outcome(err)]++
	}
	return out
}

// unique fails the test unless admitted pods of a run were admitted, 0 or 1, and all
// other responses have an expected outcome.
func unique(t *testing.T, run string, answers []error, admitted int, expected ...string) {
	t.Helper()
	got := tally(answers)
	if pods := podsOf(t, run); len(pods) != admitted || got["admitted"] != admitted {
		t.Errorf("%s: pods %q, and answers %v", run, pods, got)
	}
	for outcome := range got {
		if outcome != "admitted" && !slices.Contains(expected, outcome) {
			t.Errorf("%s: %s, want one of %q", run, outcome, expected)
		}
	}
}

// works waits until all replicas admit creates again, and checks that they admit only
// one create of a race.
func works(t *testing.T, g *solepod.Process, clients map[string]client.Client, run string) {
	t.Helper()
	revive(t, g)
	for i := range len(g.Replicas) {
		try := fmt.Sprintf("%s-back-%d", run, i)
		fixture.Eventually(t, func() error { return clients["alpha"].Create(t.Context(), pod(try, try)) })
	}
	unique(t, run+"-after", race(t, clients, run+"-after", 8), 1, "403 DuplicateEnvironment", "403 DuplicateTry", "409 InFlight")
}

// revive starts replicas that have ended, as the kubelet does, and waits until
// all are ready.
func revive(t *testing.T, g *solepod.Process) {
	t.Helper()
	for _, replica := range g.Replicas {
		fixture.Eventually(t, func() error {
			select {
			case <-replica.Done():
				if err := replica.Start(); err != nil {
					t.Fatal(err)
				}
			default:
			}
			return replica.Ready(t.Context())
		})
	}
}

// leader returns the leader, or nil if there is none.
func leader(t *testing.T, g *solepod.Process) *solepod.Replica {
	t.Helper()
	for _, replica := range g.Replicas {
		metrics, err := replica.Metrics(t.Context())
		if err == nil && strings.Contains(string(metrics), `leader_election_master_status{name="solepod"} 1`) {
			return replica
		}
	}
	return nil
}

// claimOf is the claim of a pod's task.
func claimOf(t *testing.T, pod *corev1.Pod) (*coordinationv1.Lease, error) {
	t.Helper()
	id, _ := taskpod.FromMeta(pod, "").Identity()
	lease := &coordinationv1.Lease{}
	return lease, plane.Admin.Get(t.Context(), client.ObjectKey{Namespace: solepod.Namespace, Name: claim.Name(id)}, lease)
}

// held waits until the claim of a pod's task has these holders' pods.
func held(t *testing.T, pod *corev1.Pod, want ...string) {
	t.Helper()
	fixture.Eventually(t, func() error {
		lease, err := claimOf(t, pod)
		if err != nil {
			return err
		}
		_, holders, _ := claim.Inspect(lease)
		got := []string{}
		for _, h := range holders {
			got = append(got, h.Pod)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s is held by %q, want %q", pod.Labels["run_id"], got, want)
		}
		return nil
	})
}
