package audit

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Options of a scan.
type Options struct {
	// Settings are those of the installation.
	Settings policy.Settings
	// Namespaces and Environments limit the report; empty for all.
	Namespaces, Environments []string
	// OlderThan is the minimum time since a pod ended for it to be a leftover. Airflow
	// needs some time to read the pod and mark it as checked.
	OlderThan time.Duration
	// AbandonedAfter is the time after which pods that still run are safe to remove, if
	// nothing can wait for them; 0 for never. It counts from the end of the base
	// container or, for the pods of an unknown environment, from their creation.
	AbandonedAfter time.Duration
	// Now is the time that ages refer to.
	Now time.Time
}

// Pod is a task pod, with what its metadata does not contain.
type Pod struct {
	taskpod.Pod
	// Ended is when the last container ended, or the base container of a pod in which
	// others run on; zero for a live pod.
	Ended time.Time
	// Retired is true for a pod that solepod has marked and not deleted yet.
	Retired bool
	// ResourceVersion is that of the pod when it was read.
	ResourceVersion string
}

// Claim is a claim in the cluster.
type Claim struct {
	Name     string
	Identity taskpod.Identity
	Holders  []claim.Holder
	// Unreadable is true if solepod cannot read the claim.
	Unreadable bool
}

// Cluster is the part of a cluster that Scan reads.
type Cluster struct {
	Pods []Pod
	// Claims is nil if solepod is not installed.
	Claims []Claim
	// Environments are those in labels of namespaces and ServiceAccounts, and in the
	// configuration.
	Environments map[string]bool
}

// Scan reports on a cluster.
func Scan(c Cluster, o Options) Report {
	r := Report{Time: o.Now, Environments: []Environment{}, Collisions: []Collision{}, Leftovers: []Finding{}, Orphans: []Finding{}}
	environments := map[string]*Environment{}
	environment := func(name string) *Environment {
		if environments[name] == nil {
			environments[name] = &Environment{Name: name}
		}
		return environments[name]
	}
	var pods []*Pod
	for i := range c.Pods {
		p := &c.Pods[i]
		if !p.Guarded() || !wants(p.Namespace, o.Namespaces) {
			continue
		}
		pods = append(pods, p)
		if o.includes(p) {
			r.Pods++
			environment(p.Environment(o.Settings.EnvironmentLabel)).count(p, o.Settings.EnvironmentLabel)
		}
	}
	slices.SortFunc(pods, byTask)
	for family := range chunks(pods, func(id taskpod.Identity) taskpod.Identity { return id.AnyIndex() }) {
		for _, collision := range collisions(family, o) {
			r.Collisions = append(r.Collisions, collision)
			for _, name := range collision.Environments {
				if environments[name] != nil {
					environments[name].Collisions++
				}
			}
		}
	}
	for same := range chunks(pods, func(id taskpod.Identity) taskpod.Identity { return id }) {
		for _, p := range same {
			f, found := find(p, same, c.Environments, o)
			switch {
			case !found || !o.includes(p):
			case p.Finished():
				r.Leftovers = append(r.Leftovers, f)
				environment(f.Environment).Leftovers++
			default:
				r.Orphans = append(r.Orphans, f)
				environment(f.Environment).Orphans++
			}
		}
	}
	if c.Claims != nil {
		r.claims(c, o)
	}
	for _, name := range slices.Sorted(maps.Keys(environments)) {
		r.Environments = append(r.Environments, *environments[name])
	}
	r.sort()
	return r
}

// byTask sorts pods by task, those without a map index first, and then by age.
func byTask(a, b *Pod) int {
	x, _ := a.Identity()
	y, _ := b.Identity()
	return cmp.Or(
		cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.DAG, y.DAG), cmp.Compare(x.Task, y.Task),
		cmp.Compare(x.RunLabel, y.RunLabel), cmp.Compare(x.Run, y.Run), compareMapped(x, y), cmp.Compare(x.MapIndex, y.MapIndex),
		byAge(a, b),
	)
}

func compareMapped(x, y taskpod.Identity) int {
	switch {
	case x.Mapped == y.Mapped:
		return 0
	case y.Mapped:
		return -1
	}
	return 1
}

func byAge(a, b *Pod) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) }

// chunks returns the sections of sorted pods with equal keys.
func chunks(pods []*Pod, key func(taskpod.Identity) taskpod.Identity) iter.Seq[[]*Pod] {
	return func(yield func([]*Pod) bool) {
		for len(pods) > 0 {
			first, _ := pods[0].Identity()
			end := slices.IndexFunc(pods, func(p *Pod) bool {
				id, _ := p.Identity()
				return key(id) != key(first)
			})
			if end < 0 {
				end = len(pods)
			}
			if !yield(pods[:end]) {
				return
			}
			pods = pods[end:]
		}
	}
}

func wants(value string, wanted []string) bool {
	return len(wanted) == 0 || slices.Contains(wanted, value)
}

func (o Options) includes(p *Pod) bool {
	return wants(p.Namespace, o.Namespaces) && wants(p.Environment(o.Settings.EnvironmentLabel), o.Environments)
}

func (e *Environment) count(p *Pod, label string) {
	if p.Finished() {
		e.Finished++
	} else {
		e.Live++
	}
	switch {
	case p.Declares(label):
		e.Declared++
	case e.Name != "" && p.Stamped:
		e.Stamped++
	case e.Name != "":
		e.Labelled++
	}
}

func (o Options) ref(p *Pod) Ref {
	id, _ := p.Identity()
	ref := Ref{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID,
		Environment: p.Environment(o.Settings.EnvironmentLabel), Declared: p.Declares(o.Settings.EnvironmentLabel),
		Phase: cmp.Or(string(p.Phase), "Unknown"), Try: p.Labels[taskpod.LabelTry], Created: p.Created,
		DAG: id.DAG, Task: id.Task, Run: id.Run, MapIndex: id.MapIndex,
	}
	if p.Deleting {
		ref.Phase = "Terminating"
	}
	if !p.Ended.IsZero() {
		ref.Ended = &p.Ended
	}
	return ref
}

// collisions returns the collisions among the pods of a task, mapped or not. Each has
// a live pod whose selector matches all its pods. Selectors match finished pods, too.
func collisions(family []*Pod, o Options) []Collision {
	var out []Collision
	grouped := map[*Pod]bool{}
	add := func(p *Pod, candidates []*Pod) {
		if p.Finished() || p.Checked() || grouped[p] {
			return
		}
		selector := p.Selector(o.Settings.EnvironmentLabel)
		var found []*Pod
		for _, x := range candidates {
			if !x.Deleting && selector.Matches(labels.Set(x.Labels)) {
				found = append(found, x)
			}
		}
		if len(found) < 2 || !slices.ContainsFunc(found, o.includes) {
			return
		}
		for _, x := range found {
			grouped[x] = true
		}
		slices.SortFunc(found, byAge)
		out = append(out, o.collision(p, found))
	}
	for same := range chunks(family, func(id taskpod.Identity) taskpod.Identity { return id }) {
		candidates := same
		if id, _ := same[0].Identity(); !id.Mapped {
			candidates = family // an unmapped pod, which comes first, matches all
		}
		if len(candidates) < 2 {
			continue
		}
		for _, p := range same {
			add(p, candidates)
		}
	}
	return out
}

func (o Options) collision(of *Pod, found []*Pod) Collision {
	ref := o.ref(of)
	c := Collision{
		Namespace: ref.Namespace, DAG: ref.DAG, Task: ref.Task, Run: ref.Run, MapIndex: ref.MapIndex,
		Consequences: consequences(found),
	}
	environments := map[string]bool{}
	for _, x := range found {
		c.Pods = append(c.Pods, o.ref(x))
		environments[x.Environment(o.Settings.EnvironmentLabel)] = true
	}
	c.Environments = slices.Sorted(maps.Keys(environments))
	return c
}

// consequences returns what each version of the provider will do. Most is from the
// source of the provider. The table in README.md is from runs of the real provider.
func consequences(pods []*Pod) []Consequence {
	newest, older := pods[len(pods)-1].Name, "the others"
	if len(pods) == 2 {
		older = pods[0].Name
	}
	const crash = "the task crashes when it searches for its pod (More than one pod running with labels), and its pod remains"
	return []Consequence{
		{"3.0.0 to 8.3.0", crash},
		{"8.3.1 and newer, reattach_on_restart=True", crash},
		{"8.3.1 and newer, reattach_on_restart=False", fmt.Sprintf("the task uses %s as its pod, and marks and deletes %s", newest, older)},
	}
}

// find reports whether a pod is a leftover or an orphan among the pods of its task.
func find(p *Pod, same []*Pod, known map[string]bool, o Options) (Finding, bool) {
	label := o.Settings.EnvironmentLabel
	f := Finding{Ref: o.ref(p), pod: p}
	if p.Deleting {
		due := o.Now.Sub(p.Deletion.Due)
		f.Reason = reasonStuckTerminating
		f.Detail = fmt.Sprintf("should have ended %s ago; %s", duration.HumanDuration(due), p.Deletion.WaitsFor())
		// Airflow finds it until it is checked.
		return f, due >= terminatingFor && !p.Checked()
	}
	if p.Checked() && !p.Retired {
		return f, false // Airflow has finished with it, and keeps it on purpose
	}
	if p.Over != nil {
		ago := o.Now.Sub(p.Over.At)
		f.Reason, f.Safe = reasonBaseContainerEnded, o.abandoned(ago)
		f.Detail = fmt.Sprintf("container %s ended %s ago, and %s runs on", p.Over.Container, duration.HumanDuration(ago), strings.Join(p.Over.Running, ", "))
		return f, ago >= o.OlderThan
	}
	if later, superseded := laterTry(p, same, label); superseded {
		f.Reason, f.Safe = reasonSupersededTry, p.Finished()
		f.Detail = fmt.Sprintf("%s has try %s", later.Name, later.Labels[taskpod.LabelTry])
		return f, true
	}
	if p.Finished() {
		ago := o.Now.Sub(p.Ended)
		if ago < o.OlderThan {
			return f, false
		}
		f.Reason, f.Safe = reasonLeftover, true
		f.Detail = fmt.Sprintf("ended %s ago, and Airflow has not marked it as checked", duration.HumanDuration(ago))
		return f, true
	}
	if environment := p.Environment(label); environment != "" && known != nil && !known[environment] {
		f.Reason, f.Detail = reasonUnknownEnvironment, fmt.Sprintf("environment %s no longer exists", environment)
		f.Safe = o.abandoned(o.Now.Sub(p.Created))
		return f, true
	}
	return f, false
}

// terminatingFor is how long a pod may stay after its grace period.
const terminatingFor = time.Minute

// abandoned reports whether a pod that still runs is safe to remove after this time.
func (o Options) abandoned(after time.Duration) bool {
	return o.AbandonedAfter > 0 && after >= o.AbandonedAfter
}

// laterTry returns the pod of the latest try of the same task and environment. found
// is false if that is p.
func laterTry(p *Pod, same []*Pod, label string) (*Pod, bool) {
	best, found := p, false
	for _, x := range same {
		if x.Environment(label) != p.Environment(label) {
			continue
		}
		try, numbered := x.Try()
		if latest, ok := best.Try(); numbered && ok && try > latest {
			best, found = x, true
		}
	}
	return best, found
}

// claims compares claims and pods. It ignores claims and pods that may be in flight.
func (r *Report) claims(c Cluster, o Options) {
	pods, held := map[types.UID]bool{}, map[types.UID]bool{}
	for _, p := range c.Pods {
		pods[p.UID] = true
	}
	for _, claimed := range c.Claims {
		if claimed.Unreadable {
			r.UnreadableClaims = append(r.UnreadableClaims, claimed.Name)
			continue
		}
		exists := false
		for _, h := range claimed.Holders {
			held[h.UID] = true
			young := o.Now.Sub(h.ClaimedAt.Time) < claimsSettleAfter
			exists = exists || pods[h.UID] || young
			if young && !pods[h.UID] && !h.Family && wants(claimed.Identity.Namespace, o.Namespaces) && wants(h.Environment, o.Environments) {
				r.InFlight = append(r.InFlight, PendingPod{
					Claim: claimed.Name, Namespace: claimed.Identity.Namespace, Pod: h.Pod, Environment: h.Environment, ClaimedAt: h.ClaimedAt.Time,
				})
			}
		}
		if !exists && wants(claimed.Identity.Namespace, o.Namespaces) && len(o.Environments) == 0 {
			r.ClaimsWithoutPods = append(r.ClaimsWithoutPods, claimed.Name)
		}
	}
	for i := range c.Pods {
		p := &c.Pods[i]
		if p.Guarded() && !p.Checked() && !held[p.UID] && o.includes(p) && o.Now.Sub(p.Created) >= claimsSettleAfter {
			r.PodsWithoutClaims = append(r.PodsWithoutClaims, o.ref(p))
		}
	}
}

// claimsSettleAfter is the time in which the leader deletes a claim without a pod, and
// creates one for a pod without a claim.
const claimsSettleAfter = 2 * claim.GracePeriod

func (r *Report) sort() {
	byPod := func(a, b Ref) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	}
	slices.SortFunc(r.Collisions, func(a, b Collision) int { return byPod(a.Pods[0], b.Pods[0]) })
	for _, findings := range [][]Finding{r.Leftovers, r.Orphans} {
		slices.SortFunc(findings, func(a, b Finding) int { return byPod(a.Ref, b.Ref) })
	}
	slices.SortFunc(r.PodsWithoutClaims, byPod)
	slices.SortFunc(r.InFlight, func(a, b PendingPod) int { return cmp.Or(a.ClaimedAt.Compare(b.ClaimedAt), cmp.Compare(a.Pod, b.Pod)) })
	slices.Sort(r.ClaimsWithoutPods)
	slices.Sort(r.UnreadableClaims)
}
