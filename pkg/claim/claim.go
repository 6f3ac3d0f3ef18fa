// Package claim makes admissions exact under concurrency: of all concurrent
// creates of one task, on any number of replicas, etcd picks one.
//
// A claim is a Lease in solepod's own namespace, named by a hash of an identity.
// It lists its holders: the pods that were admitted for this identity. A replica
// admits a pod only after it has written the pod into the claim. The write fails
// if the claim has changed since the replica read it: a create fails if the name
// exists, an update if the resourceVersion differs. So all admissions of a task
// have an order, and each decision includes all earlier ones.
//
// # The invariant
//
// From before a pod exists until no selector of Airflow can find it any more,
// the pod is a holder of its claim.
//
// Claimers and the Reconciler keep it without coordination. Both drop a holder
// only if
//
//   - the pod itself (by UID) exists, and Airflow no longer finds it; or
//   - the watch of this replica has reported the end of the pod itself, and the
//     API server does not have it after that; or
//   - the claim was read first, the pod is not found after that, and GracePeriod
//     has passed, so that no request is alive that could still create the pod;
//
// and both write with the resourceVersion that they read. The second of two
// concurrent writes fails, and its writer reads and decides again. So neither can
// undo a change that it has not read. The Reconciler adds the holders that a
// Claimer would have written, and drops those that the next Claimer would drop.
// Pods that were created without solepod, before it was installed or while it was
// down, become holders when the Reconciler finds them.
//
// # Mapped and unmapped pods of one task
//
// A selector without map_index matches every mapped pod of the task, so these
// collide although their identities differ. The claim of the unmapped identity
// represents the whole family. Before a mapped pod takes its own claim, it puts a
// family placeholder into that one: a holder for any number of mapped pods of one
// environment. The placeholder is renewed at most once in placeholderRenewal,
// whatever the number of pods. It means only that mapped pods may be in flight.
// Those that exist are found in the cache.
package claim

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

const (
	// Label is a label of every claim. Its value is the version of the format.
	Label   = "solepod.io/claim"
	version = "v1"
	// LabelNamespace is a label of every claim: the namespace of its pods.
	LabelNamespace = "solepod.io/namespace"

	// annotationHolders is the list of holders in JSON.
	annotationHolders = "solepod.io/holders"
	// annotationTask has the labels of the identity in JSON, if they are not labels of
	// the claim: see write.
	annotationTask = "solepod.io/task"

	// prefix distinguishes claims from other Leases in solepod's namespace.
	prefix = "claim-"
)

const (
	// GracePeriod is the time after its claim in which a pod can still be created. A
	// request to the API server takes at most 34 s (--request-timeout, and the
	// deadline of the write). The rest allows for different clocks of replicas.
	GracePeriod = 60 * time.Second

	// placeholderRenewal is the maximum age of a family placeholder that another
	// mapped pod relies on. A placeholder must outlive the pods that rely on it: it
	// counts for placeholderRenewal + GracePeriod.
	placeholderRenewal = 30 * time.Second

	// maxHolders is the maximum number of holders of a claim. A task has that many
	// pods only if all its tries are kept and none of them is checked.
	maxHolders = 64
)

// Holder is a pod in a claim, with its labels at admission.
type Holder struct {
	// Pod is the name of the pod. Its namespace is that of the identity.
	Pod string `json:"pod,omitempty"`
	// UID is the UID of the pod. When the API server repeats a request on its own,
	// each review has another UID.
	UID types.UID `json:"uid,omitempty"`
	// Environment is the value of the environment label, Declared is true if the pod
	// declares it, and Try is its try_number.
	Environment string `json:"environment,omitempty"`
	Declared    bool   `json:"declared,omitempty"`
	Try         string `json:"try,omitempty"`
	// Requester is the user that created the pod, shortened by [requesterOf]. It is ""
	// for pods that the Reconciler has found.
	Requester string `json:"requester,omitempty"`
	// Family is true for a family placeholder: a holder for all mapped pods of a task
	// in one environment. Such a holder has no name.
	Family bool `json:"mark,omitempty"`
	// ClaimedAt is the time of the admission by the clock of the replica.
	ClaimedAt metav1.Time `json:"claimedAt"`
}

// requesterOf returns a user name, or a hash of a very long one: 64 names must fit into
// a claim.
func requesterOf(username string) string {
	if len(username) <= maxRequester {
		return username
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(username)))
}

// maxRequester is the maximum length of the user name of a ServiceAccount.
const maxRequester = len("system:serviceaccount:") + 63 + len(":") + 253

func holderOf(p taskpod.Pod, environmentLabel string, at time.Time) Holder {
	return Holder{
		Pod: p.Name, UID: p.UID,
		Environment: p.Environment(environmentLabel), Declared: p.Declares(environmentLabel),
		Try:       p.Labels[taskpod.LabelTry],
		ClaimedAt: metav1.NewTime(at),
	}
}

// placeholderOf returns the family placeholder for a mapped pod.
func placeholderOf(h Holder) Holder {
	return Holder{Family: true, Environment: h.Environment, Declared: h.Declared, Requester: h.Requester, ClaimedAt: h.ClaimedAt}
}

// sameFamily reports whether one placeholder represents the pods of both.
func (h Holder) sameFamily(o Holder) bool {
	return h.Environment == o.Environment && h.Declared == o.Declared && h.Requester == o.Requester
}

// inFlight reports whether the pod of the holder can still be created.
func (h Holder) inFlight(now time.Time) bool { return now.Before(h.expires()) }

func (h Holder) expires() time.Time {
	if h.Family {
		return h.ClaimedAt.Add(placeholderRenewal + GracePeriod)
	}
	return h.ClaimedAt.Add(GracePeriod)
}

// assumed returns the pod of a holder as the claim recorded it.
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

// write writes the holders into a Lease, with labels to select claims by and a
// line for kubectl get. The identity is zero if it is not known.
//
// kube-state-metrics shows the spec of each Lease to all who read metrics. The labels and
// the spec of a discreet claim name no DAG, task or pod. The Reconciler needs these
// names: they are in annotations, which only readers of the Lease get.
func write(lease *coordinationv1.Lease, id taskpod.Identity, holders []Holder, environmentLabel string, discreet bool) error {
	raw, err := json.Marshal(holders)
	if err != nil {
		return fmt.Errorf("encoding the holders: %w", err)
	}
	lease.Annotations = map[string]string{annotationHolders: string(raw)}
	lease.Labels = map[string]string{}
	if id != (taskpod.Identity{}) {
		if discreet {
			task, err := json.Marshal(id.Labels())
			if err != nil {
				return fmt.Errorf("encoding the task: %w", err)
			}
			lease.Annotations[annotationTask] = string(task)
		} else {
			lease.Labels = id.Labels()
		}
		lease.Labels[LabelNamespace] = id.Namespace
	}
	lease.Labels[Label] = version
	if environment := holders[0].Environment; environment != "" {
		lease.Labels[environmentLabel] = environment
	}
	line := describe(holders, discreet)
	lease.Spec.HolderIdentity = &line
	acquired := metav1.NewMicroTime(holders[0].ClaimedAt.Time)
	lease.Spec.AcquireTime = &acquired
	return nil
}

// read returns the holders of a claim. A claim that was edited by hand or written
// by another version of solepod may be unreadable. It then counts as one unknown
// pod in flight until the Reconciler has repaired it.
func read(lease *coordinationv1.Lease, now time.Time) (holders []Holder, ok bool) {
	v := cmp.Or(lease.Labels[Label], version)
	err := json.Unmarshal([]byte(lease.Annotations[annotationHolders]), &holders)
	if v != version || err != nil || len(holders) == 0 || len(holders) > maxHolders || slices.ContainsFunc(holders, Holder.invalid) {
		return []Holder{{ClaimedAt: metav1.NewTime(now)}}, false
	}
	return holders, true
}

// invalid reports whether solepod cannot have written a holder. Requests for its
// pod, or writes of its claim, would always fail.
func (h Holder) invalid() bool {
	year := h.ClaimedAt.UTC().Year()
	return h.Pod != "" && len(validation.IsDNS1123Subdomain(h.Pod)) > 0 ||
		len(validation.IsValidLabelValue(h.Environment))+len(validation.IsValidLabelValue(h.Try)) > 0 || len(h.Requester) > maxRequester ||
		year < 0 || year > 9999
}

// identityOf returns the identity from the labels of a claim, or from its annotation. ok
// is false if the claim has the name of another identity.
func identityOf(lease *coordinationv1.Lease) (id taskpod.Identity, ok bool) {
	labels := maps.Clone(lease.Labels)
	if labels == nil {
		return taskpod.Identity{}, false
	}
	if task, discreet := lease.Annotations[annotationTask]; discreet {
		var own map[string]string
		if err := json.Unmarshal([]byte(task), &own); err != nil {
			return taskpod.Identity{}, false // edited by hand
		}
		maps.Copy(labels, own)
	}
	labels[taskpod.LabelOperator] = taskpod.True
	id, ok = taskpod.Pod{Namespace: labels[LabelNamespace], Labels: labels}.Identity()
	if !ok || Name(id) != lease.Name {
		return taskpod.Identity{}, false
	}
	return id, true
}

// describe returns the line that kubectl get leases prints for a claim. The task is in
// the labels. With discreet, the line has no names of pods, which are those of tasks.
func describe(holders []Holder, discreet bool) string {
	first := holders[0]
	name := cmp.Or(first.Pod, "unknown")
	switch {
	case first.Family:
		name = "mapped pods"
	case discreet:
		name = "a pod"
	}
	line := fmt.Sprintf("%s (%s)", name, cmp.Or(first.Environment, "unknown"))
	if more := len(holders) - 1; more > 0 {
		line += fmt.Sprintf(", %d more", more)
	}
	return line
}

// observation is a holder and the pod of its name.
type observation struct {
	Holder
	// found is nil if there is no such pod, or it belongs to another task.
	found *taskpod.Pod
	// gone is true if the pod itself has existed and was deleted.
	gone bool
	// other is the UID of a pod with the name of the holder that is no pod of the task.
	other types.UID
	// creator is the requester of the holder, with the environment that it has now.
	creator policy.Requester
}

// renamed reports whether the environment of the requester has another name than when
// it created the pod. Its claim then proves that it may still delete the pod.
func (s observation) renamed() bool {
	return !s.Declared && s.creator.Environment != "" && s.creator.Environment != s.Environment
}

// itself reports whether the found pod is the pod of the holder, by UID.
func (s observation) itself() bool { return s.found != nil && s.found.UID == s.UID }

// holds reports whether the holder still counts.
func (s observation) holds(now time.Time) bool {
	if s.itself() {
		return !s.found.Checked() || s.renamed()
	}
	return !s.gone && s.inFlight(now)
}

// decide decides on a new pod with the holders of a claim. If the pod is admitted,
// it returns the holders to write, including mine, or nil if the claim need not be
// written.
//
// A pod that has the name of a holder counts with its own labels. If its UID
// differs (a request was repeated, or a name was reused), it becomes a holder
// itself. The other holder also counts while its pod can still be created. That
// includes holders with the name of the new pod, which do not conflict with it:
// if the new pod is deleted at once, theirs could still be created.
func decide(n policy.Submission, mine Holder, seen []observation, s policy.Settings) (policy.Decision, []Holder) {
	id, _ := n.Pod.Identity()
	if mine.Family {
		id = id.AnyIndex()
	}
	var (
		existing []policy.Existing
		holders  []Holder
		covered  bool // by a placeholder that is young enough
	)
	for _, x := range seen {
		if x.found != nil {
			pod := policy.Existing{Pod: *x.found}
			if x.itself() {
				pod.Creator = x.creator
			}
			existing = append(existing, pod)
			if !x.itself() && !x.found.Checked() && !holdsUID(seen, x.found.UID) {
				holders = append(holders, holderOf(*x.found, s.EnvironmentLabel, x.found.Created))
			}
		}
		if x.other != "" && x.Pod == n.Pod.Name {
			existing = append(existing, policy.Existing{Pod: taskpod.Pod{Namespace: n.Pod.Namespace, Name: x.Pod, UID: x.other}})
		}
		switch {
		case x.Family && mine.Family: // mapped pods do not collide with mapped pods
			if x.sameFamily(mine) {
				covered = covered || n.Now.Before(x.ClaimedAt.Add(placeholderRenewal))
				continue
			}
		case x.UID != "" && x.UID == mine.UID:
			continue // written by an attempt that got no response
		case x.holds(n.Now) && !x.itself():
			existing = append(existing, policy.Existing{Pod: x.assumed(id, s.EnvironmentLabel), InFlight: true, Creator: x.creator})
		}
		if x.holds(n.Now) {
			holders = append(holders, x.Holder)
		}
	}
	decision := policy.Decide(n, existing, s)
	if !decision.Allowed || covered {
		return decision, nil
	}
	return decision, fit(append(holders, mine), seen)
}

// fit drops holders of checked pods if there are too many holders.
func fit(holders []Holder, seen []observation) []Holder {
	for _, x := range seen {
		if len(holders) > maxHolders && x.itself() && x.found.Checked() {
			holders = slices.DeleteFunc(holders, func(h Holder) bool { return h.UID == x.UID })
		}
	}
	return holders
}

func holdsUID(seen []observation, uid types.UID) bool {
	return slices.ContainsFunc(seen, func(x observation) bool { return x.UID == uid })
}

// repair returns the holders that a claim should have: those that still count,
// and the cached pods of its identity that are missing. Holders whose pod was not
// found stay until they expire, the first of them after wait (0 if there is none).
func repair(now time.Time, seen []observation, pods []taskpod.Pod, environmentLabel string) (holders []Holder, wait time.Duration) {
	for _, x := range seen {
		if x.ClaimedAt.After(now.Add(GracePeriod)) {
			x.ClaimedAt = metav1.NewTime(now) // otherwise, it would never expire
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

// Inspect reads a claim for display. ok is false if the claim is unreadable. The
// identity is zero if the claim has the name of another one.
func Inspect(lease *coordinationv1.Lease) (id taskpod.Identity, holders []Holder, ok bool) {
	id, _ = identityOf(lease)
	holders, ok = read(lease, time.Time{})
	return id, holders, ok
}
