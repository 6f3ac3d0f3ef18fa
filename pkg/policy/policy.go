// Package policy decides on requests for task pods. Decide decides on creating
// a pod, DecideAccess on updating, deleting or connecting to one, and both write
// the message that the requester reads. The package is pure: it has no state and
// does no I/O.
//
// The promise: after every admission, the selector that Airflow uses to find a
// task pod matches exactly that pod. The only exception is a later try of the
// same environment, where retries: Allow leaves the pod of the earlier try.
//
// In this package, n is the new pod and x is one existing pod. To see what
// happens to two given pods, read decidePair: it is one table, from top to
// bottom.
package policy

import (
	"cmp"
	"slices"
	"time"

	"github.com/solepod/solepod/pkg/taskpod"
)

// Settings are the part of the configuration that decisions depend on.
type Settings struct {
	// EnvironmentLabel is the label key that names an Airflow environment.
	EnvironmentLabel string
	// RequireDeclared denies pods that do not declare their environment if the
	// requester has one (injection: Require).
	RequireDeclared bool
	// Discreet hides environments from one another: the message of a denial
	// names neither the conflicting pod nor its environment
	// (disclosure: Discreet).
	Discreet bool
	// SupersedeRetries replaces the pod of an earlier try of the same environment
	// by the pod of a later one, and an older pod of the same try (retries: Supersede).
	// Otherwise both exist, or the new one is denied.
	SupersedeRetries bool
}

// Requester is the user that sent a request to the API server.
type Requester struct {
	// Username is the authenticated name. Messages show it with unsafe characters
	// replaced.
	Username string
	// Environment is the environment of the requester, or "" if it has none.
	Environment string
	// Guessed is true if nothing is known of the requester, and Environment is the
	// label of the namespace of the pod.
	Guessed bool
	// Ambiguous are the environments of a requester that has several. Environment is
	// then "".
	Ambiguous []string
}

// environments returns the environments of the requester. It has more than one only
// if it is ambiguous.
func (r Requester) environments() []string {
	if r.Environment == "" {
		return r.Ambiguous
	}
	return []string{r.Environment}
}

// sameAirflow reports whether two requesters are one Airflow: the same user, or users
// of the same environment now. It is false if one of them is unknown. A guess is
// no environment of a user.
func (r Requester) sameAirflow(o Requester) bool {
	return r.Username != "" && r.Username == o.Username ||
		r.Environment != "" && r.Environment == o.Environment && !r.Guessed && !o.Guessed
}

// Submission is a request to create a pod.
type Submission struct {
	Pod taskpod.Pod
	// GeneratesName is true if the API server has made the name, and makes another one if
	// it is taken.
	GeneratesName bool
	Requester     Requester
	// Now is the time that ages in messages refer to.
	Now time.Time
}

// Existing is a pod that may conflict with a submission.
type Existing struct {
	taskpod.Pod
	// InFlight is true for a pod that was admitted and does not exist yet.
	InFlight bool
	// Creator created the pod. Its Environment is the one that it has now. The zero
	// value is unknown.
	Creator Requester
}

// Reason is the code of a denial. Messages, metrics, events and docs/reasons.md
// use the same codes.
type Reason string

// Reasons for a denial.
const (
	// DuplicateEnvironment: a live pod of another environment would match the
	// selector of the new pod, or the new pod would match its selector.
	DuplicateEnvironment Reason = "DuplicateEnvironment"
	// DuplicateTry: a live pod of the same environment runs the same try, or a
	// later one, and is not superseded.
	DuplicateTry Reason = "DuplicateTry"
	// InFlight: the conflicting pod is being created. The next attempt will find it.
	InFlight Reason = "InFlight"
	// LeftoverEnvironment: a finished pod of another environment still matches the
	// selector.
	LeftoverEnvironment Reason = "LeftoverEnvironment"
	// NameTaken: another pod of the same name exists. The API server would return
	// AlreadyExists.
	NameTaken Reason = "NameTaken"
	// EnvironmentMismatch: the environment label of the pod names another
	// environment than the requester's.
	EnvironmentMismatch Reason = "EnvironmentMismatch"
	// EnvironmentAmbiguous: the configuration assigns the requester to several
	// environments.
	EnvironmentAmbiguous Reason = "EnvironmentAmbiguous"
	// EnvironmentNotDeclared: the pod does not declare its environment, and must.
	EnvironmentNotDeclared Reason = "EnvironmentNotDeclared"
	// ForeignEnvironment: a requester updates, deletes or connects to a pod of
	// another environment.
	ForeignEnvironment Reason = "ForeignEnvironment"
	// ForeignCleanup: a requester deletes a finished pod of another environment, as jobs
	// do that clean up. No Airflow task has found that pod for its own.
	ForeignCleanup Reason = "ForeignCleanup"
	// IdentityChanged: an update would change which task the pod belongs to.
	IdentityChanged Reason = "IdentityChanged"
)

// code returns the HTTP status of a denial. It determines whether Airflow
// retries the request within the same try of the task: 403 never, 409 up to 3
// times within about 3 s (provider 1.1.0 to 10.10.0) or 5 times within 1 to 15 s
// (10.11.0+).
func (r Reason) code() int32 {
	switch r {
	case InFlight, LeftoverEnvironment, NameTaken:
		return 409 // Conflict
	default:
		return 403 // Forbidden
	}
}

// Decision is the verdict on a request. The response, the log line, the metric,
// the event and the audit annotation are all made from it.
type Decision struct {
	Allowed bool
	// Reason, Code, Message and PublicMessage are set on a denial. Code is an HTTP
	// status; Message is one line, safe to print anywhere.
	Reason  Reason
	Code    int32
	Message string
	// PublicMessage is what the requester reads: Message or, with
	// [Settings.Discreet], a message without the other environment.
	PublicMessage string
	// Existing is the conflicting pod of a denial. It is nil if the denial does not
	// depend on another pod.
	Existing *taskpod.Pod
	// Supersede are the pods to retire before the new pod is admitted.
	Supersede []taskpod.Pod
}

// Decide decides whether a task pod may be created in addition to the existing
// pods. It ignores existing pods that do not matter: pods of other tasks, checked
// pods, and pods of controllers. No pod can be created while another object has its
// name.
func Decide(n Submission, existing []Existing, s Settings) Decision {
	if !n.Pod.Guarded() {
		return Decision{Allowed: true}
	}
	if reason := decideAlone(n, s); reason != "" {
		return deny(reason, nil, aloneMessage(reason, n, s), "")
	}
	var (
		conflicts []conflict
		supersede []taskpod.Pod
	)
	for _, x := range existing {
		if x.Name == n.Pod.Name {
			if reason := decideName(n, x, s); reason != "" {
				conflicts = append(conflicts, conflict{reason, x.Pod})
			}
			continue
		}
		if !matters(n.Pod, x.Pod) {
			continue
		}
		switch v := decidePair(n, x, s); {
		case v.reason != "":
			conflicts = append(conflicts, conflict{v.reason, x.Pod})
		case v.supersede:
			supersede = append(supersede, x.Pod)
		}
	}
	if len(conflicts) > 0 {
		worst := slices.MinFunc(conflicts, compareConflicts)
		return deny(worst.reason, &worst.pod, duplicateMessage(worst.reason, n, worst.pod, s), discreetDuplicate(worst.reason, n, worst.pod, s))
	}
	slices.SortFunc(supersede, func(a, b taskpod.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return Decision{Allowed: true, Supersede: supersede}
}

// deny returns a denial. The requester reads the discreet message, or the full
// message if that is empty.
func deny(reason Reason, existing *taskpod.Pod, message, discreet string) Decision {
	return Decision{Reason: reason, Code: reason.code(), Message: message, PublicMessage: cmp.Or(discreet, message), Existing: existing}
}

// Contended returns the denial of a submission whose claim changes faster than
// solepod can read it, because other pods of the task are being created.
func Contended(n Submission, s Settings) Decision {
	unknown := taskpod.Pod{Namespace: n.Pod.Namespace}
	return deny(InFlight, nil, duplicateMessage(InFlight, n, unknown, s), discreetDuplicate(InFlight, n, unknown, s))
}

// Abandoned returns the denial of a submission that conflicts with a pod of an environment
// that no longer exists. No Airflow waits for that pod.
func Abandoned(n Submission, x taskpod.Pod, s Settings) Decision {
	return deny(DuplicateEnvironment, &x, abandonedMessage(n, x, s), discreetDuplicate(DuplicateEnvironment, n, x, s))
}

// decideAlone decides what depends on the new pod and its requester only.
func decideAlone(n Submission, s Settings) Reason {
	known := n.Requester.Environment
	if len(n.Requester.Ambiguous) > 0 {
		return EnvironmentAmbiguous
	}
	if known == "" {
		return ""
	}
	// A guess contradicts no label. An empty label names no environment: it is wrong in
	// any case.
	if carried, ok := n.Pod.Labels[s.EnvironmentLabel]; ok && carried != known && (carried == "" || !n.Requester.Guessed) {
		return EnvironmentMismatch
	}
	if s.RequireDeclared && !n.Pod.Declares(s.EnvironmentLabel) {
		return EnvironmentNotDeclared
	}
	return ""
}

// matters reports whether the selector of n could match x, or that of x match n,
// environments aside.
func matters(n, x taskpod.Pod) bool {
	if !x.Guarded() || x.Checked() {
		return false
	}
	nid, _ := n.Identity()
	xid, _ := x.Identity()
	return nid.Overlaps(xid)
}

// decideName decides on creating n while x has its name. The API server would refuse n in
// any case. So n is denied, because a holder in the claim would outlast it. A pod in
// flight of that name may be n itself, sent again by the API server.
func decideName(n Submission, x Existing, s Settings) Reason {
	key := s.EnvironmentLabel
	nid, _ := n.Pod.Identity()
	xid, task := x.Identity()
	switch {
	case x.InFlight || x.UID == n.Pod.UID:
		return ""
	case n.GeneratesName, !task, !nid.Overlaps(xid), x.Checked(),
		n.Pod.Environment(key) == x.Environment(key), n.Requester.sameAirflow(x.Creator):
		return NameTaken
	case x.Finished():
		return LeftoverEnvironment
	}
	return DuplicateEnvironment
}

// verdict is the decision for one pair of pods. The zero value admits n.
type verdict struct {
	reason    Reason
	supersede bool
}

// decidePair is the decision table for creating n while x exists. The first case
// that applies decides.
func decidePair(of Submission, x Existing, s Settings) verdict {
	n, key := of.Pod, s.EnvironmentLabel
	sameEnvironment := n.Environment(key) == x.Environment(key)
	bothDeclared := n.Declares(key) && x.Declares(key)
	if !n.Declares(key) && !x.Declares(key) && of.Requester.sameAirflow(x.Creator) {
		sameEnvironment = true // the label has changed since x was created
	}

	switch {
	case !sameEnvironment && bothDeclared:
		return verdict{} // each selector contains its own environment and matches one pod

	case !sameEnvironment && x.Finished():
		return verdict{reason: LeftoverEnvironment}
	case !sameEnvironment:
		return verdict{reason: liveReason(x, DuplicateEnvironment)}

	case newerTry(n, x.Pod) && !s.SupersedeRetries:
		return verdict{}
	case newerTry(n, x.Pod) && x.InFlight:
		return verdict{reason: InFlight} // x does not exist yet and cannot be retired
	case newerTry(n, x.Pod):
		return verdict{supersede: true}

	case x.Finished():
		return verdict{}
	case s.SupersedeRetries && !x.InFlight && equalTry(n, x.Pod) && of.Now.Sub(x.Created) >= sameTryAgain:
		return verdict{supersede: true}
	default:
		return verdict{reason: liveReason(x, DuplicateTry)}
	}
}

func liveReason(x Existing, reason Reason) Reason {
	if x.InFlight {
		return InFlight
	}
	return reason
}

// newerTry reports whether n is a later try than x. It is false if one of them
// has no try number.
func newerTry(n, x taskpod.Pod) bool {
	nTry, nOK := n.Try()
	xTry, xOK := x.Try()
	return nOK && xOK && nTry > xTry
}

// equalTry reports whether n and x are of the same try. It is false if one of them has no
// try number.
func equalTry(n, x taskpod.Pod) bool {
	nTry, nOK := n.Try()
	xTry, xOK := x.Try()
	return nOK && xOK && nTry == xTry
}

// sameTryAgain is the minimum age of a pod that a pod of the same try supersedes. Airflow
// before 2.10 does not count a try if a deferred task is cleared.
const sameTryAgain = time.Minute

// conflict is an existing pod for which n is denied.
type conflict struct {
	reason Reason
	pod    taskpod.Pod
}

// compareConflicts puts the conflict first that the message reports: one that
// does not end by waiting, and of those the one with the oldest pod.
func compareConflicts(a, b conflict) int {
	severity := []Reason{DuplicateEnvironment, DuplicateTry, InFlight, LeftoverEnvironment, NameTaken}
	return cmp.Or(
		cmp.Compare(slices.Index(severity, a.reason), slices.Index(severity, b.reason)),
		a.pod.Created.Compare(b.pod.Created),
		cmp.Compare(a.pod.Name, b.pod.Name),
	)
}
