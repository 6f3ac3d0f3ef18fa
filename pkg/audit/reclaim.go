package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/retire"
)

// Asked is the reason for what somebody asked to be removed by its name.
const Asked Reason = "Asked"

// Reclaimable are the findings that are removed without being asked for by name.
func (r *Report) Reclaimable() []Finding {
	var out []Finding
	for _, f := range slices.Concat(r.Leftovers, r.Orphans) {
		if f.Safe {
			out = append(out, f)
		}
	}
	return out
}

// Named are the task pods of these names, live ones too. It fails if one of
// them is not there, or no task pod.
func (c Cluster) Named(names []types.NamespacedName, o Options) ([]Finding, error) {
	found := map[types.NamespacedName]Finding{}
	for i := range c.Pods {
		p := &c.Pods[i]
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		if p.Guarded() && slices.Contains(names, key) {
			found[key] = Finding{Ref: o.ref(p), Reason: Asked, Detail: "it was asked for by its name", pod: p}
		}
	}
	var out []Finding
	var errs []error
	for _, name := range names {
		f, ok := found[name]
		if !ok {
			errs = append(errs, fmt.Errorf("there is no task pod %s", name))
			continue
		}
		out = append(out, f)
	}
	return out, errors.Join(errs...)
}

// Outcome is what has become of a finding.
type Outcome string

// The values of Outcome.
const (
	// Planned: it would be removed.
	Planned Outcome = "Planned"
	// Reclaimed: it is marked as checked and deleted.
	Reclaimed Outcome = "Reclaimed"
	// Changed: it is gone, or has changed since the scan, and was left alone.
	Changed Outcome = "Changed"
	// Failed: the API server has refused it.
	Failed Outcome = "Failed"
)

// Result is a finding and what has become of it.
type Result struct {
	Finding

	Outcome Outcome `json:"outcome"`
	Error   string  `json:"error,omitempty"`
}

// Results are the results of a reclaim.
type Results struct {
	Pods []Result `json:"pods"`
}

// Failed reports whether a pod could not be removed.
func (r Results) Failed() bool {
	return slices.ContainsFunc(r.Pods, func(r Result) bool { return r.Outcome == Failed })
}

// Reclaimer removes what a scan has found.
type Reclaimer struct {
	// Client is nil for a dry run.
	Client client.Writer
	// Limiter bounds how many pods are removed in a second.
	Limiter flowcontrol.RateLimiter
	// Done hears of each result; nil for silence.
	Done func(Result)
}

// Reclaim marks the pods as checked and deletes them, one after another, each
// only if it is what it was when it was scanned. It can be interrupted at any
// time, and done again: what is marked and not deleted is found by the next
// scan. The error is that of ctx.
func (r Reclaimer) Reclaim(ctx context.Context, findings []Finding) (Results, error) {
	results := Results{Pods: []Result{}}
	for _, f := range findings {
		result := Result{Finding: f, Outcome: Planned}
		if r.Client != nil {
			if err := r.Limiter.Wait(ctx); err != nil {
				return results, err
			}
			version := f.pod.ResourceVersion
			if !f.pod.Finished() {
				version = "" // live pods change all the time
			}
			err := retire.Pod(ctx, r.Client, f.pod.Pod, version, "reclaimed: "+string(f.Reason))
			switch {
			case err == nil:
				result.Outcome = Reclaimed
			case errors.Is(err, retire.ErrChanged):
				result.Outcome = Changed
			default:
				result.Outcome, result.Error = Failed, err.Error()
			}
		}
		results.Pods = append(results.Pods, result)
		if r.Done != nil {
			r.Done(result)
		}
	}
	return results, ctx.Err()
}

// LeftoverAge is for how long a finished pod is Airflow's own business, unless
// somebody knows better: as long as it may look for it.
const LeftoverAge = time.Hour
