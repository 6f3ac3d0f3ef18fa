// Package claim makes admissions exact under concurrency: of all the creates
// of one task at the same moment, on any number of replicas, etcd picks one.
//
// A claim is a Lease in solepod's own namespace, named by a hash of a task's
// identity. It lists its holders: the pods that were admitted for this task. A
// replica may admit a pod only after it has written the pod into the claim, and
// it writes only what it has decided on the claim as it was just before:
// creating the Lease is decided by its name, updating it by its
// resourceVersion. So there is an order of all admissions of a task, and each
// is decided knowing all earlier ones.
//
// # The invariant
//
// From before a pod exists until no selector of Airflow can find it any more,
// the pod is a holder of its claim.
//
// Guards and the Reconciler keep it without knowing of one another. Either
// drops a holder only if
//
//   - the very pod (by UID) can be seen, and Airflow no longer finds it; or
//   - its own watch of pods has told of the very pod's end, and after that the
//     API server does not have it; or
//   - the claim was read first, the pod is not found after that, and GracePeriod
//     has passed, so that no request that could still create it is alive;
//
// and writes that with the resourceVersion that it read. Whoever comes second
// fails, reads again and decides again. Neither can undo what the other has
// not seen, so they never fight: the Reconciler adds what a guard would have
// written, and drops what the next guard would drop. Pods that no guard was
// asked about, because they are older than solepod or it was down, become
// holders when the Reconciler sees them.
//
// # Mapped and unmapped pods of one task
//
// A selector without map_index finds every mapped pod of the task, so these
// collide although their identities differ. The claim of the unmapped identity
// stands for the whole family: before the claim of its own, a mapped pod sees
// to it that the family's carries a mark, a holder that stands for any number
// of mapped pods of its environment. The mark is renewed at most once in
// placeholderRenewal, whatever the number of pods. It says only that mapped pods may
// be appearing; those that have appeared are found in the cache.
package claim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

const (
	// Label is on every claim; its value is the version of the format.
	Label   = "solepod.io/claim"
	version = "v1"
	// LabelNamespace is on every claim: the namespace of its pods.
	LabelNamespace = "solepod.io/namespace"

	// annotationHolders is the list of holders, as JSON.
	annotationHolders = "solepod.io/holders"

	// prefix tells claims from the other Leases in solepod's namespace.
	prefix = "claim-"
)

const (
	// GracePeriod is how long after its claim a pod that cannot be seen may still
	// appear. A request to the API server lives 34 s at most
	// (--request-timeout, and the deadline of the write); the rest allows for
	// replicas whose clocks differ.
	GracePeriod = 60 * time.Second

	// placeholderRenewal is how old a family's mark may be for another mapped pod to
	// rely on it. A mark outlives the pods that rely on it: it counts for
	// placeholderRenewal + GracePeriod.
	placeholderRenewal = 30 * time.Second

	// maxHolders bounds a claim. A task has that many pods only if all its
	// tries are kept, and none is marked as checked.
	maxHolders = 64
)

// Holder is a pod in a claim, as it was when it was admitted.
type Holder struct {
	// Pod is the pod's name. Its namespace is the identity's.
	Pod string `json:"pod,omitempty"`
	// UID is the pod's. A request that the API server repeats by itself asks
	// with another UID each time.
	UID types.UID `json:"uid,omitempty"`
	// Environment is the pod's environment label, Declared whether the pod
	// declared it by itself, and Try its try_number.
	Environment string `json:"environment,omitempty"`
	Declared    bool   `json:"declared,omitempty"`
	Try         string `json:"try,omitempty"`
	// Mark is set on a holder that stands for all mapped pods of a family and
	// an environment, none of which it names.
	Family bool `json:"mark,omitempty"`
	// ClaimedAt is the time of the admission, by the replica's clock.
	ClaimedAt metav1.Time `json:"claimedAt"`
}

func holderOf(p taskpod.Pod, environmentLabel string, at time.Time) Holder {
	return Holder{
		Pod: p.Name, UID: p.UID,
		Environment: p.Environment(environmentLabel), Declared: p.Declares(environmentLabel),
		Try:       p.Labels[taskpod.LabelTry],
		ClaimedAt: metav1.NewTime(at),
	}
}

// placeholderOf is the mark of a mapped pod's family, which stands for others as well.
func placeholderOf(h Holder) Holder {
	return Holder{Family: true, Environment: h.Environment, Declared: h.Declared, ClaimedAt: h.ClaimedAt}
}

func (h Holder) sameEnvironment(o Holder) bool {
	return h.Environment == o.Environment && h.Declared == o.Declared
}

// inFlight reports whether the holder's pod may still appear.
func (h Holder) inFlight(now time.Time) bool { return now.Before(h.expires()) }

func (h Holder) expires() time.Time {
	if h.Family {
		return h.ClaimedAt.Add(placeholderRenewal + GracePeriod)
	}
	return h.ClaimedAt.Add(GracePeriod)
}

// assumed is the holder as a pod, from what the claim recorded of it.
func (h Holder) assumed(id taskpod.Identity, environmentLabel string) taskpod.Pod {
	labels := id.Labels()
	labels[taskpod.LabelOperator] = taskpod.True
	if h.Environment != "" {
		labels[environmentLabel] = h.Environment
	}
	if h.Declared {
		labels[taskpod.LabelEvidence] = taskpod.EvidenceV1
	}
	if h.Try != "" {
		labels[taskpod.LabelTry] = h.Try
	}
	return taskpod.Pod{
		Namespace: id.Namespace, Name: h.Pod, UID: h.UID, Labels: labels,
		Stamped: h.Environment != "" && !h.Declared,
		Created: h.ClaimedAt.Time,
	}
}

// Name returns the name of the claim of an identity.
func Name(id taskpod.Identity) string { return prefix + id.Hash() }

// write puts the holders into a Lease, and what makes it readable: labels to
// select by, and a line for kubectl get. The identity is zero if unknown.
func write(lease *coordinationv1.Lease, id taskpod.Identity, holders []Holder, environmentLabel string) error {
	raw, err := json.Marshal(holders)
	if err != nil {
		return fmt.Errorf("encoding the holders: %w", err)
	}
	lease.Annotations = map[string]string{annotationHolders: string(raw)}
	lease.Labels = map[string]string{}
	if id != (taskpod.Identity{}) {
		lease.Labels = id.Labels()
		lease.Labels[LabelNamespace] = id.Namespace
	}
	lease.Labels[Label] = version
	if environment := holders[0].Environment; environment != "" {
		lease.Labels[environmentLabel] = environment
	}
	line := describe(id, holders)
	lease.Spec.HolderIdentity = &line
	acquired := metav1.NewMicroTime(holders[0].ClaimedAt.Time)
	lease.Spec.AcquireTime = &acquired
	return nil
}

// read returns a claim's holders. A claim that somebody has edited beyond
// recognition, or that another version of solepod wrote, may hold anything: it
// reads as one unknown pod in flight, until the Reconciler has mended it.
func read(lease *coordinationv1.Lease, now time.Time) (holders []Holder, ok bool) {
	v := cmp.Or(lease.Labels[Label], version)
	err := json.Unmarshal([]byte(lease.Annotations[annotationHolders]), &holders)
	if v != version || err != nil || len(holders) == 0 || len(holders) > maxHolders || slices.ContainsFunc(holders, Holder.invalid) {
		return []Holder{{ClaimedAt: metav1.NewTime(now)}}, false
	}
	return holders, true
}

// invalid reports whether solepod can not have written a holder. Its pod could
// not be asked for, or the claim could not be written with it, for ever.
func (h Holder) invalid() bool {
	year := h.ClaimedAt.UTC().Year()
	return h.Pod != "" && len(validation.IsDNS1123Subdomain(h.Pod)) > 0 ||
		len(validation.IsValidLabelValue(h.Environment))+len(validation.IsValidLabelValue(h.Try)) > 0 ||
		year < 0 || year > 9999
}

// identityOf is the identity that a claim's labels name. It is unknown if that
// is not the one that the claim is named by.
func identityOf(lease *coordinationv1.Lease) (id taskpod.Identity, ok bool) {
	labels := maps.Clone(lease.Labels)
	if labels == nil {
		return taskpod.Identity{}, false
	}
	labels[taskpod.LabelOperator] = taskpod.True
	id, ok = taskpod.Pod{Namespace: labels[LabelNamespace], Labels: labels}.Identity()
	if !ok || Name(id) != lease.Name {
		return taskpod.Identity{}, false
	}
	return id, true
}

// describe is the line that kubectl get leases prints for a claim.
func describe(id taskpod.Identity, holders []Holder) string {
	const shown = 3
	var names []string
	for i, h := range holders {
		if i == shown {
			names = append(names, fmt.Sprintf("%d more", len(holders)-shown))
			break
		}
		name := cmp.Or(h.Pod, "unknown")
		if h.Family {
			name = "mapped pods"
		}
		names = append(names, fmt.Sprintf("%s (%s)", name, cmp.Or(h.Environment, "unknown")))
	}
	task := "an unknown task"
	if id != (taskpod.Identity{}) {
		task = id.String()
	}
	return fmt.Sprintf("%s for %s", strings.Join(names, ", "), task)
}

// observation is a holder, and what the API server has under its name.
type observation struct {
	Holder
	// found is nil where there is no pod, or none of this task.
	found *taskpod.Pod
	// gone is set if the very pod has been, and is no more.
	gone bool
}

// itself reports whether the very pod that the holder stands for was found.
func (s observation) itself() bool { return s.found != nil && s.found.UID == s.UID }

// holds reports whether the holder still counts.
func (s observation) holds(now time.Time) bool {
	if s.itself() {
		return !s.found.Checked()
	}
	return !s.gone && s.inFlight(now)
}

// decide decides on a pod beside the holders of a claim, and returns the
// holders to write if it is admitted, mine among them; nil if they need not be
// written.
//
// A pod that is found under a holder's name counts as what it is. If it is not
// the very pod that the holder stands for (a request was repeated, or a name
// is used again), it becomes a holder itself, and the other one counts as well,
// as long as its own pod may still appear. That is so for holders of the
// submission's own name, too, though they do not stand in its way: should its
// pod come and go at once, theirs might still appear.
func decide(n policy.Submission, mine Holder, seen []observation, s policy.Settings) (policy.Decision, []Holder) {
	id, _ := n.Pod.Identity()
	if mine.Family {
		id = id.AnyIndex()
	}
	var (
		existing []policy.Existing
		holders  []Holder
		marked   bool // well enough for mine to rely on it
	)
	for _, x := range seen {
		if x.found != nil {
			existing = append(existing, policy.Existing{Pod: *x.found})
			if !x.itself() && !x.found.Checked() && !holdsUID(seen, x.found.UID) {
				holders = append(holders, holderOf(*x.found, s.EnvironmentLabel, x.found.Created))
			}
		}
		switch {
		case x.Family && mine.Family: // mapped pods beside mapped pods
			if x.sameEnvironment(mine) {
				marked = marked || n.Now.Before(x.ClaimedAt.Add(placeholderRenewal))
				continue
			}
		case x.UID != "" && x.UID == mine.UID:
			continue // written before, by an attempt that did not hear of its success
		case x.holds(n.Now) && !x.itself():
			existing = append(existing, policy.Existing{Pod: x.assumed(id, s.EnvironmentLabel), InFlight: true})
		}
		if x.holds(n.Now) {
			holders = append(holders, x.Holder)
		}
	}
	decision := policy.Decide(n, existing, s)
	if !decision.Allowed || marked {
		return decision, nil
	}
	return decision, append(holders, mine)
}

func holdsUID(seen []observation, uid types.UID) bool {
	return slices.ContainsFunc(seen, func(x observation) bool { return x.UID == uid })
}

// repair returns what a claim should say: the holders that still count, and
// the pods that are there but not in it. The pods are those of this identity
// that are known. Holders of whom nothing is known but that they were not
// found stay until they expire, the first of them after wait (0: none).
func repair(now time.Time, seen []observation, pods []taskpod.Pod, environmentLabel string) (holders []Holder, wait time.Duration) {
	for _, x := range seen {
		if x.ClaimedAt.After(now.Add(GracePeriod)) {
			x.ClaimedAt = metav1.NewTime(now) // else it would never expire
		}
		if !x.holds(now) {
			continue
		}
		if left := x.expires().Sub(now); !x.itself() && (wait == 0 || left < wait) {
			wait = left
		}
		holders = append(holders, x.Holder)
	}
	for _, p := range pods {
		if !p.Checked() && !holdsUID(seen, p.UID) && len(holders) < maxHolders {
			holders = append(holders, holderOf(p, environmentLabel, p.Created))
		}
	}
	return holders, wait
}

// Inspect reads a claim for those who only look. It is not ok if it can not be
// read; the identity is zero if the claim is not named by it.
func Inspect(lease *coordinationv1.Lease) (id taskpod.Identity, holders []Holder, ok bool) {
	id, _ = identityOf(lease)
	holders, ok = read(lease, time.Time{})
	return id, holders, ok
}
