package faults

import (
	"fmt"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"

	"os/exec"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// running returns an error if the process of a replica is another one, or has ended.
func running(replica *solepod.Replica, pid int) error {
	select {
	case <-replica.Done():
		return fmt.Errorf("it has ended: %w", replica.Err())
	default:
	}
	if got := replica.PID(); got != pid {
		return fmt.Errorf("process %d, want %d", got, pid)
	}
	return nil
}

// leads waits until a replica leads, or does not.
func leads(t *testing.T, g *solepod.Process, want bool) {
	t.Helper()
	fixture.Eventually(t, func() error {
		if got := leader(t, g) != nil; got != want {
			return fmt.Errorf("a replica leads: %v", got)
		}
		return nil
	})
}

// etcd stops for so long that the leader cannot renew its Lease (ten seconds), while 50
// clients create pods. The replica answers all of them, and leads again afterwards.
// (kubernetes-sigs/controller-runtime #3113, open-policy-agent/gatekeeper #3776: the
// process ends without finishing its requests.)
func TestLeadLost(t *testing.T) {
	const creators = 50
	g := solepod.Run(t, plane, solepod.Options{})
	clients := solepod.Airflows(t, plane, jobs)
	leads(t, g, true)
	pid := g.PID()
	// What the API server needs to know of alpha is in its caches.
	if err := clients["alpha"].Create(t.Context(), pod("lead-live", "lead-live")); err != nil {
		t.Fatal(err)
	}
	if err := plane.SignalEtcd(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	answers := make([][]error, creators)
	var all sync.WaitGroup
	for i := range creators {
		all.Go(func() {
			for round := 0; ; round++ {
				select {
				case <-over:
					return
				default:
				}
				run := fmt.Sprintf("lead-%d-%d", i, round)
				answers[i] = append(answers[i], clients["alpha"].Create(t.Context(), pod(run, run)))
			}
		})
	}
	// The last creates begin before the lead is lost, and end after it.
	leads(t, g, false)
	close(over)
	all.Wait()
	if err := plane.SignalEtcd(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	cut := regexp.MustCompile(`EOF|refused|reset|failed calling webhook`)
	for _, own := range answers {
		for _, err := range own {
			if err != nil && cut.MatchString(err.Error()) {
				t.Error(err)
			}
		}
		t.Logf("%v", tally(own))
	}
	if err := running(g.Replica, pid); err != nil {
		t.Fatal(err)
	}
	leads(t, g, true)
	// The work of the leader goes on: it adopts a pod.
	if err := g.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error { return plane.Admin.Create(t.Context(), pod("lead-adopted", "lead-adopted")) })
	held(t, pod("lead-adopted", ""), "lead-adopted")
	if err := running(g.Replica, pid); err != nil {
		t.Error(err)
	}
}

// solepod starts while the API server is down. It lives, is not ready, and becomes ready
// when the API server comes. (kubernetes-retired/service-catalog #1376)
func TestStartWithoutAPIServer(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{})
	clients := solepod.Airflows(t, plane, jobs)
	if err := g.Replica.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := plane.Down(); err != nil {
		t.Fatal(err)
	}
	up := sync.OnceValue(plane.Up)
	t.Cleanup(func() { _ = up() }) // for the other tests, if this one fails before
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	pid := g.PID()
	fixture.Eventually(t, func() error {
		if err := running(g.Replica, pid); err != nil {
			t.Fatal(err)
		}
		_, err := solepod.Get(t.Context(), "http://"+g.HealthAddress+"/healthz")
		return err
	})
	if err := g.Ready(t.Context()); err == nil {
		t.Error("it is ready without an API server")
	}
	if err := up(); err != nil {
		t.Fatal(err)
	}
	works(t, g, clients, "start")
	leads(t, g, true)
	if err := running(g.Replica, pid); err != nil {
		t.Error(err)
	}
}

// SIGTERM ends solepod while one of its caches cannot be filled: here, it may not read
// the Secret with its certificates.
func TestTerminatedWhileACacheFills(t *testing.T) {
	g := solepod.Run(t, plane, solepod.Options{}) // installs the permissions
	own, err := plane.ServiceAccount(t.Context(), solepod.Namespace, "solepod")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := controlplane.WriteKubeconfig(own, kubeconfig); err != nil {
		t.Fatal(err)
	}
	health, err := controlplane.FreeAddress(t.Context(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	webhook, err := controlplane.FreeAddress(t.Context(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	binary, err := solepod.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := controlplane.StartProcess(exec.Command(binary, "serve", "--kubeconfig="+kubeconfig,
		"--system-namespace="+solepod.Namespace, "--cert-secret=may-not-be-read", "--leader-elect",
		"--webhook-bind-address="+webhook, "--health-probe-bind-address="+health, "--metrics-bind-address=0",
	), filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	fixture.Eventually(t, func() error {
		_, err := solepod.Get(t.Context(), "http://"+health+"/readyz/caches")
		return err
	})
	if err := p.Stop(); err != nil { // it waits for a minute
		t.Error(err)
	}
	if err := g.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Err(); err != nil {
		t.Errorf("it failed: %v", err)
	}
}
