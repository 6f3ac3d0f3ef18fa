// Package audit finds problems with the task pods of a cluster: collisions, leftovers
// and orphans. Collect reads the cluster, Scan is pure and returns a Report, and
// Reclaim removes the pods that are safe to remove.
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

// Collision is a set of pods that one selector of Airflow matches.
type Collision struct {
	Namespace string `json:"namespace"`
	DAG       string `json:"dag"`
	Task      string `json:"task"`
	Run       string `json:"run"`
	MapIndex  string `json:"mapIndex,omitempty"`
	// Pods are sorted by age, the oldest first.
	Pods []Ref `json:"pods"`
	// Environments are those of the pods, "" for none.
	Environments []string `json:"environments"`
	// Consequences are what Airflow's operator will do.
	Consequences []Consequence `json:"consequences"`
}

// Consequence is what the operator of some versions of the provider will do.
type Consequence struct {
	// Providers are versions of apache-airflow-providers-cncf-kubernetes.
	Providers string `json:"providers"`
	Effect    string `json:"effect"`
}

// Finding is a leftover or an orphan.
type Finding struct {
	Ref
	Reason Reason `json:"reason"`
	// Detail explains the reason.
	Detail string `json:"detail"`
	// Safe is true if solepod reclaim removes the pod even if it is not named.
	Safe bool `json:"safe"`

	pod *Pod
}

// Reason is the reason of a finding.
type Reason string

// The values of Reason.
const (
	// reasonLeftover: the pod has ended, and Airflow has not checked it.
	reasonLeftover Reason = "Leftover"
	// reasonSupersededTry: the same environment has a pod of a later try.
	reasonSupersededTry Reason = "SupersededTry"
	// reasonBaseContainerEnded: the container of the task has ended, and another one runs
	// on.
	reasonBaseContainerEnded Reason = "BaseContainerEnded"
	// reasonStuckTerminating: the pod stays after its deletion and its grace period.
	reasonStuckTerminating Reason = "StuckTerminating"
	// reasonUnknownEnvironment: no namespace, ServiceAccount or configuration has the
	// environment of the pod.
	reasonUnknownEnvironment Reason = "UnknownEnvironment"
)

// Environment counts the pods of an environment.
type Environment struct {
	// Name is "" for pods without an environment.
	Name     string `json:"name"`
	Live     int    `json:"live"`
	Finished int    `json:"finished"`
	Declared int    `json:"declared"`
	// Labelled are pods with the environment label but without evidence that
	// Airflow's selector contains it.
	Labelled int `json:"labelled"`
	Stamped  int `json:"stamped"`
	// Collisions, Leftovers and Orphans are those with pods of the environment.
	Collisions int `json:"collisions"`
	Leftovers  int `json:"leftovers"`
	Orphans    int `json:"orphans"`
}

// Undeclared reports whether the environment has pods and none declares it. None of
// its tasks can then run at the same time as in another environment.
func (e Environment) Undeclared() bool {
	return e.Name != "" && e.Declared == 0 && e.Live+e.Finished > 0
}

// Report is the result of a scan.
type Report struct {
	Time         time.Time     `json:"time"`
	Pods         int           `json:"pods"`
	Environments []Environment `json:"environments"`
	Collisions   []Collision   `json:"collisions"`
	// The tasks of Leftovers have ended; Orphans are live.
	Leftovers []Finding `json:"leftovers"`
	Orphans   []Finding `json:"orphans"`
	// ClaimsWithoutPods and PodsWithoutClaims are normally repaired by the leader
	// within a minute. They are nil if solepod is not installed.
	ClaimsWithoutPods []string `json:"claimsWithoutPods,omitempty"`
	PodsWithoutClaims []Ref    `json:"podsWithoutClaims,omitempty"`
	UnreadableClaims  []string `json:"unreadableClaims,omitempty"`
	// InFlight are pods that were admitted and do not exist yet.
	InFlight []PendingPod `json:"inFlight,omitempty"`
}

// PendingPod is a pod that was admitted and does not exist yet.
type PendingPod struct {
	Claim       string    `json:"claim"`
	Namespace   string    `json:"namespace"`
	Pod         string    `json:"pod"`
	Environment string    `json:"environment,omitempty"`
	ClaimedAt   time.Time `json:"claimedAt"`
}

// Found reports whether the scan has found a problem.
func (r *Report) Found() bool {
	return len(r.Collisions)+len(r.Leftovers)+len(r.Orphans)+len(r.ClaimsWithoutPods)+len(r.PodsWithoutClaims)+len(r.UnreadableClaims) > 0
}
