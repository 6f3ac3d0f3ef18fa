// Package policy holds solepod's decisions on task pods: Decide for pods that
// are about to exist, DecideAccess for what others do to them afterwards, and
// the words in which either is told to people. It is pure: everything that it
// needs is an argument, and a Decision is all that it does.
//
// The promise: after every admission, the selector with which Airflow looks
// for a task pod matches exactly that pod, retries of the same environment
// aside.
package policy

import (
	"cmp"
	"slices"
	"time"

	"github.com/solepod/solepod/pkg/taskpod"
)

// Settings are the parts of the configuration that decisions depend on.
type Settings struct {
	// EnvironmentLabel is the label key that names an Airflow environment.
	EnvironmentLabel string
	// RequireDeclared denies pods that do not declare their environment
	// although it is known (injection: Require).
	RequireDeclared bool
	// SelectorIncludesLabels is true where Airflow's selector contains the
	// operator's own labels (provider 7.4.1+). Without that, declared
	// environments do not keep two pods apart.
	SelectorIncludesLabels bool
	// SelectorExceptions overrides SelectorIncludesLabels by environment.
	SelectorExceptions map[string]bool
	// Discreet keeps environments from learning about one another: a denial tells
	// the requester, and those at the other environment's pod, only that there
	// is a collision.
	Discreet bool
	// SupersedeRetries makes a newer try of the same environment replace the
	// older pod (retries: Supersede) instead of running beside it.
	SupersedeRetries bool
}

// separable reports whether the selectors of an environment's pods contain
// their environment label if they declare it.
func (s Settings) separable(environment string) bool {
	if includes, ok := s.SelectorExceptions[environment]; ok {
		return includes
	}
	return s.SelectorIncludesLabels
}

// SelectorLabel is what [taskpod.Pod.Selector] is to be asked with for a pod of
// an environment: the environment label, or "" where Airflow does not select by
// it.
func (s Settings) SelectorLabel(environment string) string {
	if !s.separable(environment) {
		return ""
	}
	return s.EnvironmentLabel
}

// Requester is who sent the request.
type Requester struct {
	// Username is the authenticated name; it is made safe before it is shown.
	Username string
	// Environment is the requester's Airflow environment, or "" if unknown.
	Environment string
}

// Submission is a pod that somebody wants to create.
type Submission struct {
	Pod       taskpod.Pod
	Requester Requester
	// Now is the time from which ages in messages are counted.
	Now time.Time
}

// Existing is a pod that may stand in the way of a submission.
type Existing struct {
	taskpod.Pod
	// InFlight is true for a pod that was admitted but is not visible yet.
	InFlight bool
}

// Reason is the code in a denial. Metrics, events and the documentation use
// the same words.
type Reason string

// Reasons for a denial.
const (
	// DuplicateEnvironment: a live pod of another environment has the same selector.
	DuplicateEnvironment Reason = "DuplicateEnvironment"
	// DuplicateTry: a live pod of the same environment works on the same try.
	DuplicateTry Reason = "DuplicateTry"
	// InFlight: the other pod is only being created; the next attempt will see it.
	InFlight Reason = "InFlight"
	// LeftoverEnvironment: a finished pod of another environment is still selectable.
	LeftoverEnvironment Reason = "LeftoverEnvironment"
	// EnvironmentMismatch: the pod carries another environment than its requester's.
	EnvironmentMismatch Reason = "EnvironmentMismatch"
	// EnvironmentNotDeclared: the pod must declare its environment and does not.
	EnvironmentNotDeclared Reason = "EnvironmentNotDeclared"
	// ForeignEnvironment: one environment touches a pod of another.
	ForeignEnvironment Reason = "ForeignEnvironment"
	// IdentityChanged: an update would make the pod another task's pod.
	IdentityChanged Reason = "IdentityChanged"
)

// code is the HTTP status of a denial. It decides whether Airflow tries again
// by itself: 403 never, 409 up to 3 times over about 3 s (1.1.0 to 10.10.0) or
// 5 times over 1 to 15 s (10.11.0+).
func (r Reason) code() int32 {
	switch r {
	case InFlight, LeftoverEnvironment:
		return 409 // Conflict
	default:
		return 403 // Forbidden
	}
}

// Decision is a verdict. It is the single source of the response, the log
// line and everything else that tells of it.
type Decision struct {
	Allowed bool
	// Reason, Code, Message and PublicMessage are set on a denial. Code is an HTTP
	// status; Message is one line, safe to print anywhere.
	Reason  Reason
	Code    int32
	Message string
	// PublicMessage is what the requester reads: Message or, with
	// [Settings.Discreet], a message that says nothing about the other environment.
	PublicMessage string
	// Existing is the pod that the denial is about; nil where it is about the
	// submission alone.
	Existing *taskpod.Pod
	// Supersede lists the pods to mark and delete before an admission.
	Supersede []taskpod.Pod
}

// Decide decides on the creation of a task pod beside the existing pods.
//
// Those that do not matter may be passed as well: pods of other tasks, pods
// that Airflow is done with, the pods of controllers, and the submission
// itself under its own name (the API server answers AlreadyExists).
func Decide(n Submission, existing []Existing, s Settings) Decision {
	if !n.Pod.Guarded() {
		return Decision{Allowed: true}
	}
	if reason := decideAlone(n, s); reason != "" {
		return deny(reason, nil, aloneMessage(reason, n, s), "")
	}
	var (
		rivals    []rival
		supersede []taskpod.Pod
	)
	for _, x := range existing {
		if !matters(n.Pod, x.Pod) {
			continue
		}
		switch v := decidePair(n.Pod, x, s); {
		case v.reason != "":
			rivals = append(rivals, rival{v.reason, x.Pod})
		case v.supersede:
			supersede = append(supersede, x.Pod)
		}
	}
	if len(rivals) > 0 {
		worst := slices.MinFunc(rivals, compareRivals)
		return deny(worst.reason, &worst.pod, duplicateMessage(worst.reason, n, worst.pod, s), discreetDuplicate(worst.reason, n, worst.pod, s))
	}
	slices.SortFunc(supersede, func(a, b taskpod.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return Decision{Allowed: true, Supersede: supersede}
}

// deny tells all if there is no discreet message.
func deny(reason Reason, existing *taskpod.Pod, message, discreet string) Decision {
	return Decision{Reason: reason, Code: reason.code(), Message: message, PublicMessage: cmp.Or(discreet, message), Existing: existing}
}

// Contended is the decision on a submission in whose way something is that
// changes too fast to be looked at: others are creating pods of this task.
func Contended(n Submission, s Settings) Decision {
	unknown := taskpod.Pod{Namespace: n.Pod.Namespace}
	return deny(InFlight, nil, duplicateMessage(InFlight, n, unknown, s), discreetDuplicate(InFlight, n, unknown, s))
}

// decideAlone looks at the submission without its neighbours.
func decideAlone(n Submission, s Settings) Reason {
	known := n.Requester.Environment
	if known == "" {
		return ""
	}
	// A label that is there but empty is a declaration too, and a wrong one.
	if carried, ok := n.Pod.Labels[s.EnvironmentLabel]; ok && carried != known {
		return EnvironmentMismatch
	}
	if s.RequireDeclared && !n.Pod.Declares(s.EnvironmentLabel) {
		return EnvironmentNotDeclared
	}
	return ""
}

// matters reports whether x can be found in place of n, or n in place of x.
func matters(n, x taskpod.Pod) bool {
	if !x.Guarded() || x.Checked() || x.Name == n.Name {
		return false
	}
	nid, _ := n.Identity()
	xid, _ := x.Identity()
	return nid.Overlaps(xid)
}

// verdict is the outcome for one pair of pods; its zero value admits.
type verdict struct {
	reason    Reason
	supersede bool
}

// decidePair is the decision table on the creation of n beside x.
func decidePair(n taskpod.Pod, x Existing, s Settings) verdict {
	key := s.EnvironmentLabel
	sameEnvironment := n.Environment(key) == x.Environment(key)
	bothDeclared := n.Declares(key) && x.Declares(key)
	bothSeparable := s.separable(n.Environment(key)) && s.separable(x.Environment(key))

	switch {
	case !sameEnvironment && bothDeclared && bothSeparable:
		return verdict{} // the environment label keeps the selectors apart

	case !sameEnvironment && x.Finished():
		return verdict{reason: LeftoverEnvironment}
	case !sameEnvironment:
		return verdict{reason: liveReason(x, DuplicateEnvironment)}

	case newerTry(n, x.Pod) && !s.SupersedeRetries:
		return verdict{}
	case newerTry(n, x.Pod) && x.InFlight:
		return verdict{reason: InFlight} // there is no pod yet to mark and delete
	case newerTry(n, x.Pod):
		return verdict{supersede: true}

	case x.Finished():
		return verdict{}
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

// newerTry reports whether n is a later try than x. Pods that do not name
// their try are never later or earlier.
func newerTry(n, x taskpod.Pod) bool {
	nTry, nOK := n.Try()
	xTry, xOK := x.Try()
	return nOK && xOK && nTry > xTry
}

// rival is a pod that stands in the way.
type rival struct {
	reason Reason
	pod    taskpod.Pod
}

// compareRivals orders the rivals by what the message should be about: first
// what does not pass by waiting, then the oldest pod.
func compareRivals(a, b rival) int {
	severity := []Reason{DuplicateEnvironment, DuplicateTry, InFlight, LeftoverEnvironment}
	return cmp.Or(
		cmp.Compare(slices.Index(severity, a.reason), slices.Index(severity, b.reason)),
		a.pod.Created.Compare(b.pod.Created),
		cmp.Compare(a.pod.Name, b.pod.Name),
	)
}
