package install

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

var soak = flag.Duration("soak", 2*time.Minute, "how long TestSoak lasts")

// soaking is what has become of the tasks of a soak.
type soaking struct {
	mu                              sync.Mutex
	tasks, admitted, denied         int
	disturbed                       int // API server or replica are away
	explained, unexplained, doubles []string
}

// task creates a pod of one task in both environments concurrently. The node runs the
// admitted pod until it is deleted. If none is admitted, because the API server is
// down, there is no immediate retry.
func (s *soaking) task(ctx context.Context, name string, airflows map[string]client.Client) {
	type answer struct {
		pod *corev1.Pod
		err error
	}
	answers := make(chan answer, len(airflows))
	for environment, airflow := range airflows {
		go func() {
			pod := taskPod(name, name+"-"+environment)
			delete(pod.Labels, "airflow-environment")
			delete(pod.Labels, "solepod.io/declared")
			pod.Spec.NodeName = fixture.NodeName
			answers <- answer{pod, airflow.Create(ctx, pod)}
		}()
	}
	var admitted []*corev1.Pod
	var errs []error
	for range airflows {
		a := <-answers
		if a.err == nil {
			admitted = append(admitted, a.pod)
		} else {
			errs = append(errs, a.err)
		}
	}
	s.mu.Lock()
	s.tasks++
	s.admitted += len(admitted)
	if len(admitted) > 1 {
		s.doubles = append(s.doubles, name)
	}
	for _, err := range errs {
		s.count(err)
	}
	s.mu.Unlock()
	for _, pod := range admitted {
		err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
			err := plane.Admin.Delete(ctx, pod, client.GracePeriodSeconds(0))
			if client.IgnoreNotFound(err) != nil {
				s.mu.Lock()
				s.count(err)
				s.mu.Unlock()
				return false, nil //nolint:nilerr // it is counted, and tried again
			}
			return true, nil
		})
		if err != nil {
			s.mu.Lock()
			s.unexplained = append(s.unexplained, fmt.Sprintf("deleting %s: %v", pod.Name, err))
			s.mu.Unlock()
		}
	}
	if len(admitted) == 0 {
		time.Sleep(100 * time.Millisecond)
	}
}

// count distinguishes expected errors from others: denials with a reason, and all
// errors while the API server or a replica is down.
func (s *soaking) count(err error) {
	var unanswered *url.Error
	switch {
	case regexp.MustCompile(`\[(DuplicateEnvironment|LeftoverEnvironment|InFlight)\]`).MatchString(err.Error()):
		s.denied++
	case s.disturbed > 0 || errors.As(err, &unanswered) || apierrors.IsServiceUnavailable(err):
		s.explained = append(s.explained, err.Error())
	default:
		s.unexplained = append(s.unexplained, err.Error())
	}
}

// disturb runs a disturbance that causes errors for a while.
func (s *soaking) disturb(do func() error) error {
	change := func(by int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.disturbed += by
	}
	change(1)
	defer time.AfterFunc(10*time.Second, func() { change(-1) })
	return do()
}

// gauge has metrics of a replica.
type gauge struct{ memory, goroutines float64 }

func (c *cluster) gauges(ctx context.Context) (out []gauge) {
	for _, pod := range c.kubelet.Running() {
		text, err := metrics(ctx, pod)
		if err != nil {
			continue // it is being restarted
		}
		memory, memoryErr := controlplane.Sum(text, "process_resident_memory_bytes", nil)
		goroutines, goroutinesErr := controlplane.Sum(text, "go_goroutines", nil)
		if err := errors.Join(memoryErr, goroutinesErr); err != nil {
			c.t.Fatal(err)
		}
		out = append(out, gauge{memory, goroutines})
	}
	return out
}

// goroutines are those of the replica that has most: the leader.
func (c *cluster) goroutines(ctx context.Context) (most float64) {
	for _, g := range c.gauges(ctx) {
		most = max(most, g.goroutines)
	}
	return most
}

// Tasks come and go for a while, each in two environments at once, while
// replicas are killed and replaced, certificates rotated and the API server
// restarted. No task runs twice, nothing fails without a reason, and nothing
// grows.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("make soak and make test-slow run it")
	}
	c := newCluster(t)
	// A killed leader is replaced after 17 s. The API server responds to the new leader
	// within 5 s. Its certificate is trusted for a tenth of the lifetime before it is
	// served. All of that must fit into a third of the lifetime.
	lifetime := max(96*time.Second, *soak/8)
	c.install("--set certificates.lifetime=" + lifetime.String())
	airflows := solepod.Airflows(t, plane, "airflow-alpha")
	var s soaking
	s.task(t.Context(), "soak", airflows)
	solepod.NoClaims(t, plane)
	rest := c.goroutines(t.Context())

	ctx, stop := context.WithTimeout(t.Context(), *soak)
	defer stop()
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// What was begun is finished.
				s.task(context.WithoutCancel(ctx), fmt.Sprintf("soak-%d-%d", w, i), airflows)
			}
		})
	}
	var gauges [][]gauge
	served := map[string]bool{}
	disturbances := []struct {
		name string
		do   func() error
	}{
		{"a replica is killed", func() error {
			return s.disturb(func() error { return c.kubelet.Kill(c.kubelet.Running()[0].Name) })
		}},
		{"a replica is replaced", func() error {
			_, err := c.sh(ctx, "kubectl delete --wait=false -n solepod-system pod "+c.kubelet.Running()[0].Name)
			return err
		}},
		{"the API server is restarted", func() error { return s.disturb(plane.Restart) }},
	}
	done := map[string]int{}
	every := *soak / 7 // each twice at least
	next := time.Now().Add(every)
	for i := 0; ctx.Err() == nil; time.Sleep(*soak / 200) {
		gauges = append(gauges, c.gauges(ctx))
		if got, err := serials(ctx, c.kubelet.Running()); err == nil {
			for _, serial := range got {
				served[serial] = true
			}
		}
		if time.Now().After(next) && ctx.Err() == nil {
			d := disturbances[i%len(disturbances)]
			if err := d.do(); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", d.name, err)
			}
			done[d.name]++
			i, next = i+1, time.Now().Add(every)
		}
	}
	workers.Wait()
	t.Logf("%d tasks in %s: %d pods admitted, %d denied; %d errors while a replica or the API server was away; %v; %d certificates",
		s.tasks, *soak, s.admitted, s.denied, len(s.explained), done, len(served))
	if len(s.doubles) > 0 || len(s.unexplained) > 0 {
		t.Errorf("%d tasks ran twice: %q; %d errors without a reason, the first: %s", len(s.doubles), s.doubles, len(s.unexplained), strings.Join(s.unexplained[:min(3, len(s.unexplained))], "\n"))
	}
	if s.admitted == 0 || s.denied == 0 || len(served) < 2 || len(done) < len(disturbances) {
		t.Error("too little has happened")
	}
	flat(t, gauges)

	// An event that could not be written is tried again for two minutes, in a
	// goroutine of its own (client-go's events); all others are gone sooner.
	solepod.NoClaims(t, plane)
	var now float64
	err := wait.PollUntilContextTimeout(t.Context(), time.Second, 3*time.Minute, true, func(ctx context.Context) (bool, error) {
		now = c.goroutines(ctx)
		return now > 0 && now <= 1.3*rest, nil
	})
	t.Logf("goroutines at rest: %.0f before, %.0f after", rest, now)
	if err != nil {
		t.Errorf("goroutines do not end: %v", err)
	}
}

// flat fails the test if the memory that replicas take has grown from the second
// quarter of the time to the last one.
func flat(t *testing.T, gauges [][]gauge) {
	t.Helper()
	median := func(quarter int) float64 {
		var values []float64
		for _, g := range slices.Concat(gauges[quarter*len(gauges)/4 : (quarter+1)*len(gauges)/4]...) {
			values = append(values, g.memory)
		}
		if len(values) == 0 {
			return 0
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	early, late := median(1), median(3)
	t.Logf("bytes of memory: %.0f early, %.0f late", early, late)
	if early == 0 || late > 1.3*early {
		t.Errorf("memory has grown from %.0f to %.0f bytes", early, late)
	}
}
