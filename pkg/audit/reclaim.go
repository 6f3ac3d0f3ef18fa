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

// reasonNamed is the reason for a pod that was named.
const reasonNamed Reason = "Named"

// Reclaimable returns the findings that are removed even if they are not named.
func (r *Report) Reclaimable() []Finding {
	var out []Finding
	for _, f := range slices.Concat(r.Leftovers, r.Orphans) {
		if f.Safe {
			out = append(out, f)
		}
	}
	return out
}

// Named returns findings for the task pods with these names, including live ones. It
// fails if one of them does not exist or is no task pod.
func (c Cluster) Named(names []types.NamespacedName, o Options) ([]Finding, error) {
	found := map[types.NamespacedName]Finding{}
	for i := range c.Pods {
		p := &c.Pods[i]
		key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
		if p.Guarded() && slices.Contains(names, key) {
			found[key] = Finding{Ref: o.ref(p), Reason: reasonNamed, Detail: "named on the command line", pod: p}
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

// Outcome is the outcome of a reclaim for one pod.
type Outcome string

// The values of Outcome.
const (
	// outcomePlanned: a dry run, the pod would be removed.
	outcomePlanned Outcome = "Planned"
	// outcomeReclaimed: the pod was marked as checked and deleted.
	outcomeReclaimed Outcome = "Reclaimed"
	// outcomeChanged: the pod was deleted or has changed since the scan, and was skipped.
	outcomeChanged Outcome = "Changed"
	// outcomeFailed: the API server returned an error.
	outcomeFailed Outcome = "Failed"
)

// Result is a finding and the outcome for it.
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
	return slices.ContainsFunc(r.Pods, func(r Result) bool { return r.Outcome == outcomeFailed })
}

// Reclaimer removes pods that a scan has found.
type Reclaimer struct {
	// Client is nil for a dry run.
	Client client.Writer
	// Limiter limits the rate of removals.
	Limiter flowcontrol.RateLimiter
	// Done is called with each result, unless it is nil.
	Done func(Result)
}

// Reclaim marks the pods as checked and deletes them one by one. It skips pods that
// have changed since the scan. It can be interrupted at any time and repeated: the
// next scan finds pods that are marked and not deleted. The error is that of ctx.
func (r Reclaimer) Reclaim(ctx context.Context, findings []Finding) (Results, error) {
	results := Results{Pods: []Result{}}
	for _, f := range findings {
		result := Result{Finding: f, Outcome: outcomePlanned}
		if r.Client != nil {
			if err := r.Limiter.Wait(ctx); err != nil {
				return results, err
			}
			version := f.pod.ResourceVersion
			if !f.pod.Finished() {
				version = "" // live pods change often
			}
			err := retire.Pod(ctx, r.Client, f.pod.Pod, version, "reclaimed: "+string(f.Reason))
			switch {
			case err == nil:
				result.Outcome = outcomeReclaimed
			case errors.Is(err, retire.ErrChanged):
				result.Outcome = outcomeChanged
			default:
				result.Outcome, result.Error = outcomeFailed, err.Error()
			}
		}
		results.Pods = append(results.Pods, result)
		if r.Done != nil {
			r.Done(result)
		}
	}
	return results, ctx.Err()
}

// LeftoverAge is the default time since a pod ended for it to be a leftover. Within
// this time, Airflow may still read the pod.
const LeftoverAge = time.Hour
