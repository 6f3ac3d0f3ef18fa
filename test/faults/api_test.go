package faults

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/solepod"
)

// The API server, or a proxy in front of it, breaks requests of solepod. The client
// that creates a pod gets a response of solepod itself, within the timeout of the
// webhook.
func TestAPIServerFails(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{Replicas: 2, Faults: true})
	clients := solepod.Airflows(t, plane, jobs)
	breakAll := func(faults func(verb, resource string) solepod.Fault) {
		for _, replica := range g.Replicas {
			replica.Break(faults)
		}
	}
	claims := func(fault solepod.Fault) func(string, string) solepod.Fault {
		return func(verb, resource string) solepod.Fault {
			if resource == "leases" && verb == "create" {
				return fault
			}
			return solepod.Fault{}
		}
	}
	const creates = 8
	// The first write of each create fails, and no other.
	once := func(fault solepod.Fault) func(string, string) solepod.Fault {
		var n atomic.Int64
		return func(verb, resource string) solepod.Fault {
			if resource == "leases" && verb == "create" && n.Add(1) <= creates {
				return fault
			}
			return solepod.Fault{}
		}
	}
	denied := []string{"403 DuplicateEnvironment", "403 DuplicateTry", "409 InFlight"}
	for i, c := range []struct {
		name     string
		faults   func(verb, resource string) solepod.Fault
		admitted int
		others   []string
	}{
		{"slow", func(string, string) solepod.Fault { return solepod.Fault{Delay: 200 * time.Millisecond} }, 1, denied},
		{"too slow", claims(solepod.Fault{Delay: time.Minute}), 0, []string{"503"}},
		{"429 once", once(solepod.Fault{Status: 429, RetryAfter: 1}), 1, denied},
		{"429 always", claims(solepod.Fault{Status: 429, RetryAfter: 1}), 0, []string{"503"}},
		{"500 once", once(solepod.Fault{Status: 500}), 1, denied},
		{"500 always", claims(solepod.Fault{Status: 500}), 0, []string{"503"}},
		{"a reset, once", once(solepod.Fault{Reset: true}), 1, denied},
		{"resets always", claims(solepod.Fault{Reset: true}), 0, []string{"503"}},
		{"an answer lost once", once(solepod.Fault{Lost: true}), 1, denied},
		{"silence", claims(solepod.Fault{Silent: true}), 0, []string{"503"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := fmt.Sprintf("api-%d", i)
			breakAll(c.faults)
			answers := race(t, clients, run, creates)
			breakAll(nil)
			t.Logf("%v", tally(answers))
			unique(t, run, answers, c.admitted, c.others...)
			works(t, g, clients, run)
		})
	}
}

// warnings are those that a client has got.
type warnings []string

func (w *warnings) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

// With onError: Allow, a pod is created in spite of errors.
func TestAPIServerFailsAndErrorsAllow(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{
		Faults: true, Config: "apiVersion: solepod.io/v1alpha1\nkind: Configuration\nonError: Allow\n",
	})
	solepod.Airflows(t, plane, jobs)
	config, err := plane.Airflow(t.Context(), "airflow-alpha", "airflow", jobs)
	if err != nil {
		t.Fatal(err)
	}
	config = rest.CopyConfig(config)
	var told warnings
	config.WarningHandler = &told
	alpha, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g.Break(func(verb, resource string) solepod.Fault {
		if resource == "leases" && verb == "create" {
			return solepod.Fault{Status: 500}
		}
		return solepod.Fault{}
	})
	if err := alpha.Create(t.Context(), pod("allow", "allow")); err != nil {
		t.Error(err)
	}
	if len(told) != 1 || !strings.HasPrefix(told[0], "solepod cannot decide on this pod: ") {
		t.Errorf("warnings: %q", told)
	}
	g.Break(nil)
	held(t, pod("allow", ""), "allow") // adopted
}

// etcd does not respond for ten seconds, as with a disk that hangs.
func TestEtcdStalls(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{Replicas: 2})
	clients := solepod.Airflows(t, plane, jobs)
	if err := clients["alpha"].Create(t.Context(), pod("stall-live", "stall-live")); err != nil {
		t.Fatal(err)
	}
	if err := plane.SignalEtcd(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	over := time.After(10 * time.Second) // the length of the fault
	answers := race(t, clients, "stall", 8)
	<-over
	if err := plane.SignalEtcd(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v", tally(answers))
	for _, err := range answers {
		if outcome(err) != "503" {
			t.Errorf("while nothing could be written: %v", err)
		}
	}
	works(t, g, clients, "stall")
	if err := clients["production"].Create(t.Context(), pod("stall-live", "stall-rival")); outcome(err) != "403 DuplicateEnvironment" {
		t.Error(err)
	}
	// What was tried meanwhile may be claimed by pods that never came, and is
	// free again when they can no longer come.
	again := race(t, clients, "stall", 8)
	t.Logf("%v", tally(again))
	if pods := podsOf(t, "stall"); len(pods) > 1 {
		t.Errorf("%q", pods)
	}
}

// Each write of a Lease takes three seconds, as with a slow webhook of others that is
// called for it. A mapped pod takes two claims, so there is no time for the second one.
// The response names the write that hangs.
func TestMappedPodBesideASlowWebhook(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{Faults: true})
	clients := solepod.Airflows(t, plane, jobs)
	g.Break(func(verb, resource string) solepod.Fault {
		if resource == "leases" && verb != "get" && verb != "list" && verb != "watch" {
			return solepod.Fault{Delay: 3 * time.Second}
		}
		return solepod.Fault{}
	})
	err := clients["alpha"].Create(t.Context(), pod("slow-webhook", "slow-webhook", "map_index=1"))
	const hangs = "; the write of Lease solepod-system/claim-"
	if outcome(err) != "503" || !strings.Contains(err.Error(), hangs) || !strings.Contains(err.Error(), "solepod check names it") {
		t.Errorf("%v", err)
	}
	g.Break(nil)
	works(t, g, clients, "slow-webhook")
}
