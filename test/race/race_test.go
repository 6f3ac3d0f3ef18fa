// Package race creates pods of the same task with many concurrent clients, through three
// real replicas of solepod. Meanwhile, replicas are killed and cut off from the API
// server.
package race

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

var (
	rounds = flag.Int("rounds", 60, "rounds of TestRace")
	seed   = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of what is killed and dropped, and when")
)

const (
	replicas  = 3
	creates   = 16 // a round
	killEvery = 20 // rounds
	dropEvery = 7
	namespace = "data-jobs"
)

var (
	plane  *controlplane.ControlPlane
	shared = solepod.Shared{Options: solepod.Options{Replicas: replicas}}
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(controlplane.Main(solepod.Main{M: m, Shared: &shared}, &plane, controlplane.Options{}))
}

// tally counts answers to creates.
type tally struct {
	creates, admitted, forbidden, conflict, serverError, other int
}

func (s *tally) count(err error) {
	s.creates++
	var status apierrors.APIStatus
	switch {
	case err == nil:
		s.admitted++
	case !errors.As(err, &status):
		s.other++
	case status.Status().Code == http.StatusForbidden:
		s.forbidden++
	case status.Status().Code == http.StatusConflict:
		s.conflict++
	case status.Status().Code >= http.StatusInternalServerError:
		s.serverError++
	default:
		s.other++
	}
}

func (s *tally) add(o tally) {
	s.creates += o.creates
	s.admitted += o.admitted
	s.forbidden += o.forbidden
	s.conflict += o.conflict
	s.serverError += o.serverError
	s.other += o.other
}

func (s *tally) String() string {
	return fmt.Sprintf("%d creates: %d admitted, %d times 403, %d times 409, %d times 5xx, %d others",
		s.creates, s.admitted, s.forbidden, s.conflict, s.serverError, s.other)
}

// together creates all pods at the same moment. onAnswer is called for each
// answer, one at a time, with the number of answers before it.
func together(ctx context.Context, pods []*corev1.Pod, as func(i int) client.Client, onAnswer func(n int, err error)) (t tally) {
	var (
		mu    sync.Mutex
		all   sync.WaitGroup
		start = make(chan struct{})
	)
	for i, pod := range pods {
		all.Go(func() {
			<-start
			err := as(i).Create(ctx, pod)
			mu.Lock()
			defer mu.Unlock()
			if onAnswer != nil {
				onAnswer(t.creates, err)
			}
			t.count(err)
		})
	}
	close(start)
	all.Wait()
	return t
}

// taskPods are n pods of one task, half of whose names the API server makes.
func taskPods(run string, n int, change func(i int, pod *corev1.Pod)) []*corev1.Pod {
	pods := make([]*corev1.Pod, n)
	for i := range pods {
		name := fmt.Sprintf("%s-%d", run, i)
		if i%4 >= 2 {
			name = run + "-"
		}
		pods[i] = fixture.Pod(namespace, name+" run_id="+run)
		if change != nil {
			change(i, pods[i])
		}
	}
	return pods
}

// podsOf returns the pods of a run that exist now.
func podsOf(t *testing.T, run string) []corev1.Pod {
	t.Helper()
	return solepod.PodsOf(t, plane, namespace, run)
}

func remove(t *testing.T, pods []corev1.Pod) {
	t.Helper()
	for i := range pods {
		if err := client.IgnoreNotFound(plane.Admin.Delete(t.Context(), &pods[i], client.GracePeriodSeconds(0))); err != nil {
			t.Fatal(err)
		}
	}
}

func logOf(t *testing.T, replica *solepod.Replica) string {
	t.Helper()
	log, err := os.ReadFile(replica.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// Of many creates of one task, never two are admitted, whatever is killed or
// cut off.
func TestRace(t *testing.T) {
	g := shared.Run(t, plane)
	clients := solepod.Airflows(t, plane, namespace)
	as := func(i int) client.Client { return clients[[]string{"alpha", "production"}[i%2]] }
	random := rand.New(rand.NewPCG(*seed, 0)) //nolint:gosec // what is killed is no secret
	t.Logf("seed %d", *seed)

	var (
		total                          tally
		kills, drops, none, noneKilled int
	)
	for round := range *rounds {
		victim := g.Replicas[random.IntN(replicas)]
		kill, drop := round%killEvery == killEvery-1, round%dropEvery == dropEvery-1
		when := random.IntN(creates)
		name := fmt.Sprintf("round-%d", round)
		got := together(t.Context(), taskPods(name, creates, nil), as, func(n int, _ error) {
			if n != when {
				return
			}
			if kill {
				if err := victim.Kill(); err != nil {
					t.Error(err)
				}
			}
			if drop {
				if err := g.Replicas[random.IntN(replicas)].DropAPI(); err != nil {
					t.Error(err)
				}
			}
		})
		total.add(got)
		pods := podsOf(t, name)
		switch {
		case len(pods) > 1:
			t.Errorf("%s: %d pods of one task: %s, %s, …", name, len(pods), pods[0].Name, pods[1].Name)
		case len(pods) == 0:
			none++
			if kill {
				noneKilled++
			}
			t.Logf("%s: none admitted; a replica was killed: %v; %v", name, kill, &got)
		}
		if got.admitted > len(pods) || got.other > 0 {
			t.Errorf("%s: %d pods, and %v", name, len(pods), &got)
		}
		if drop {
			drops++
		}
		if kill {
			kills++
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			if err := victim.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		remove(t, pods)
	}
	t.Logf("%d rounds, %v", *rounds, &total)
	t.Logf("%d replicas killed, %d API connections dropped", kills, drops)
	t.Logf("reviews by replica: %v", g.Served())
	t.Logf("rounds with none admitted: %d, in %d of them a replica was killed", none, noneKilled)
	if none > noneKilled {
		t.Errorf("%d rounds without a kill admitted no pod", none-noneKilled)
	}
	for i, served := range g.Served() {
		if served == 0 {
			t.Errorf("replica %d has seen nothing", i)
		}
	}
	solepod.NoClaims(t, plane)
}
