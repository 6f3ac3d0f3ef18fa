package faults

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// fresh returns the result of that readiness check of a replica.
func fresh(ctx context.Context, replica *solepod.Replica) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+replica.HealthAddress+"/readyz/fresh", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// One of three replicas receives no watch events. It admits no duplicate. When its
// caches are stale, it reports that and refuses all reviews until it receives events
// again.
func TestReplicaCutOff(t *testing.T) {
	const limit = 10 * time.Second
	g := solepod.Run(t, plane, solepod.Options{Replicas: 3, Faults: true, Args: []string{"--max-staleness=" + limit.String()}})
	clients := solepod.Airflows(t, plane, jobs)
	deaf := g.Replicas[0]
	for _, c := range []struct {
		name  string
		fault func(verb, resource string) solepod.Fault
	}{
		{"its watches are silent", func(verb, _ string) solepod.Fault { return solepod.Fault{Silent: verb == "watch"} }},
		{"its connections are reset", func(string, string) solepod.Fault { return solepod.Fault{Reset: true} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := strings.ReplaceAll(c.name, " ", "-")
			live, mapped := run+"-live", run+"-mapped"
			deaf.Break(c.fault)
			if err := deaf.DropAPI(); err != nil {
				t.Fatal(err)
			}
			// Its cache lacks these pods.
			fixture.Eventually(t, func() error { return clients["alpha"].Create(t.Context(), pod(live, live)) })
			fixture.Eventually(t, func() error { return clients["alpha"].Create(t.Context(), pod(mapped, mapped, "map_index=7")) })
			unique(t, live, append(race(t, clients, live, 12), nil), 1, "403 DuplicateEnvironment", "403 DuplicateTry", "409 InFlight", "503", "500")

			var said string
			fixture.Eventually(t, func() (err error) {
				said, err = fresh(t.Context(), deaf)
				if err == nil && !strings.Contains(said, "are stale") {
					err = fmt.Errorf("it says %q", said)
				}
				return err
			})
			silence := regexp.MustCompile(`cached \w+ are stale: no watch event from the API server for (\d+\w+)`).FindStringSubmatch(said)
			if silence == nil {
				t.Fatalf("it says %q", said)
			}
			if lasted, err := time.ParseDuration(silence[1]); err != nil || lasted < limit {
				t.Errorf("it says %q: %v, want %s at least", said, err, limit)
			}
			if err := deaf.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "[-]fresh failed") {
				t.Errorf("ready: %v", err)
			}
			// The claim has only a family placeholder for the mapped pod, which expires:
			// then only a cache with the pod has it.
			solepod.AgeClaims(t, plane)
			answers := make([]error, 12)
			for i := range answers {
				answers[i] = clients["production"].Create(t.Context(), pod(mapped, fmt.Sprintf("%s-unmapped-%d", mapped, i)))
			}
			got := tally(answers)
			t.Logf("%v", got)
			if got["403 DuplicateEnvironment"]+got["503"] != len(answers) || got["503"] == 0 {
				t.Errorf("beside a mapped pod: %v", got)
			}
			for i, replica := range g.Replicas[1:] {
				if err := replica.Ready(t.Context()); err != nil {
					t.Errorf("replica %d: %v", i+1, err)
				}
			}
			deaf.Break(nil)
			works(t, g, clients, run)
		})
	}
}

// In a cluster without changes, the API server sends nothing for two minutes, and then
// a bookmark each minute. Replicas stay ready.
func TestIdleCluster(t *testing.T) {
	const limit = 5 * time.Second
	g := solepod.Run(t, plane, solepod.Options{Args: []string{"--max-staleness=" + limit.String()}})
	heard := func() time.Time {
		metrics, err := g.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		times, err := controlplane.Samples(metrics, "solepod_cache_last_update_timestamp_seconds", nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(times) != 3 {
			t.Fatalf("%d kinds", len(times))
		}
		return time.UnixMilli(int64(slices.Min(times) * 1000))
	}
	began := heard()
	fixture.Eventually(t, func() error {
		if err := g.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if passed := heard().Sub(began); passed < 3*limit {
			return fmt.Errorf("all kinds were heard of for %s", passed)
		}
		return nil
	})
}
