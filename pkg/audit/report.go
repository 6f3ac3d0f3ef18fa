// Package audit tells what is the matter with the task pods in a cluster now:
// which of them Airflow can not tell apart, which were left behind, and which
// of those can be removed. Scan is pure; Collect reads the cluster, and Reclaim
// removes what is safe to remove.
package audit

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Ref is a pod in a report.
type Ref struct {
	Namespace   string    `json:"namespace"`
	Name        string    `json:"name"`
	UID         types.UID `json:"uid"`
	Environment string    `json:"environment,omitempty"`
	Declared    bool      `json:"declared"`
	Phase       string    `json:"phase"`
	Try         string    `json:"try,omitempty"`
	Created     time.Time `json:"created"`
	// Ended is when a finished pod ended.
	Ended *time.Time `json:"ended,omitempty"`
	DAG   string     `json:"dag"`
	Task  string     `json:"task"`
	Run   string     `json:"run"`
	// MapIndex is set for the pods of mapped tasks.
	MapIndex string `json:"mapIndex,omitempty"`
}

// Collision is a set of pods of which an Airflow finds several when it looks
// for one.
type Collision struct {
	Namespace string `json:"namespace"`
	DAG       string `json:"dag"`
	Task      string `json:"task"`
	Run       string `json:"run"`
	MapIndex  string `json:"mapIndex,omitempty"`
	// Pods are the oldest first.
	Pods []Ref `json:"pods"`
	// Environments are those of the pods, "" for unknown.
	Environments []string `json:"environments"`
	// Consequences say what Airflow's operator will do.
	Consequences []Consequence `json:"consequences"`
}

// Consequence is what the operator of some providers does.
type Consequence struct {
	// Providers are versions of apache-airflow-providers-cncf-kubernetes.
	Providers string `json:"providers"`
	Effect    string `json:"effect"`
}

// Finding is a pod that should not be there, and why.
type Finding struct {
	Ref
	Reason Reason `json:"reason"`
	// Detail is the reason in words.
	Detail string `json:"detail"`
	// Safe says that reclaim removes it without being asked by name.
	Safe bool `json:"safe"`

	pod *Pod
}

// Reason says why a pod should not be there.
type Reason string

// The values of Reason.
const (
	// Leftover: it has ended, and Airflow has not looked at it since.
	Leftover Reason = "Leftover"
	// SupersededTry: the same environment has a pod of a later try.
	SupersededTry Reason = "SupersededTry"
	// UnknownEnvironment: no namespace, ServiceAccount or configuration names
	// its environment any more.
	UnknownEnvironment Reason = "UnknownEnvironment"
)

// Environment sums up the pods of one.
type Environment struct {
	// Name is "" for the pods of none.
	Name     string `json:"name"`
	Live     int    `json:"live"`
	Finished int    `json:"finished"`
	Declared int    `json:"declared"`
	Stamped  int    `json:"stamped"`
	// Collisions, Leftovers and Orphans are those that its pods take part in.
	Collisions int `json:"collisions"`
	Leftovers  int `json:"leftovers"`
	Orphans    int `json:"orphans"`
}

// Undeclared says that no pod of the environment declares it, so that none of
// its tasks can run beside another environment's.
func (e Environment) Undeclared() bool {
	return e.Name != "" && e.Declared == 0 && e.Live+e.Finished > 0
}

// Report is what a scan has found.
type Report struct {
	Time         time.Time     `json:"time"`
	Pods         int           `json:"pods"`
	Environments []Environment `json:"environments"`
	Collisions   []Collision   `json:"collisions"`
	// Leftovers have ended; Orphans are live.
	Leftovers []Finding `json:"leftovers"`
	Orphans   []Finding `json:"orphans"`
	// ClaimsWithoutPods and PodsWithoutClaims are what the leader mends within
	// a minute; nil where solepod is not installed.
	ClaimsWithoutPods []string `json:"claimsWithoutPods,omitempty"`
	PodsWithoutClaims []Ref    `json:"podsWithoutClaims,omitempty"`
	UnreadableClaims  []string `json:"unreadableClaims,omitempty"`
	// InFlight are pods that were admitted and are not there yet.
	InFlight []PendingPod `json:"inFlight,omitempty"`
}

// PendingPod is a pod that was admitted and is not there yet.
type PendingPod struct {
	Claim       string    `json:"claim"`
	Namespace   string    `json:"namespace"`
	Pod         string    `json:"pod"`
	Environment string    `json:"environment,omitempty"`
	ClaimedAt   time.Time `json:"claimedAt"`
}

// Found tells whether there is anything that somebody should look at.
func (r *Report) Found() bool {
	return len(r.Collisions)+len(r.Leftovers)+len(r.Orphans)+len(r.ClaimsWithoutPods)+len(r.PodsWithoutClaims)+len(r.UnreadableClaims) > 0
}
