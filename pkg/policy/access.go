package policy

import (
	"slices"
	"time"

	"github.com/solepod/solepod/pkg/taskpod"
)

// Operation is the operation of a request for an existing task pod.
type Operation string

// The operations that DecideAccess decides on.
const (
	operationUpdate  Operation = "UPDATE"
	operationDelete  Operation = "DELETE"
	operationConnect Operation = "CONNECT" // exec, attach and portforward
)

// Access is a request for an existing task pod.
type Access struct {
	Operation Operation
	Requester Requester
	// Pod is the pod before the request, and Creator created it, if that is known.
	Pod     taskpod.Pod
	Creator Requester
	// Updated is the pod after an UPDATE, and unused for other operations.
	Updated taskpod.Pod
	// Now is the time that ages in messages refer to.
	Now time.Time
}

// BecomesTaskPod reports whether an update turns a pod into a task pod that is guarded.
// Decide decides on such an update like on a create.
func BecomesTaskPod(before, after taskpod.Pod) bool {
	return !before.Guarded() && after.Guarded()
}

// DecideAccess decides on a request for an existing task pod. It admits all
// requests of requesters without an environment, such as kubelets, controllers
// and administrators, and those of the Airflow that created the pod.
func DecideAccess(a Access, s Settings) Decision {
	key := s.EnvironmentLabel
	from, to := a.Requester.environments(), a.Pod.Environment(key)
	switch {
	case len(from) == 0 || !a.Pod.IsTask():
		return Decision{Allowed: true}
	case to != "" && !slices.Contains(from, to) && !a.Requester.sameAirflow(a.Creator):
		reason := ForeignEnvironment
		if a.Operation == operationDelete && a.Pod.Finished() {
			reason = ForeignCleanup
		}
		return deny(reason, &a.Pod, foreignMessage(reason, a, s), discreetForeign(reason, s))
	}
	if a.Operation == operationUpdate {
		if what := identityChange(a.Pod, a.Updated, key); what != "" {
			return deny(IdentityChanged, &a.Pod, identityMessage(a, what, s), "")
		}
	}
	return Decision{Allowed: true}
}

// identityChange returns the label or annotation by which an update changes the
// task or the environment of a pod, or "" if there is none. The admission of the
// pod was decided on these values.
func identityChange(before, after taskpod.Pod, key string) string {
	b, _ := before.Identity()
	a, ok := after.Identity()
	switch {
	case !ok:
		return "the labels that make it a task pod"
	case b.DAG != a.DAG:
		return "label " + taskpod.LabelDAG
	case b.Task != a.Task:
		return "label " + taskpod.LabelTask
	case b.RunLabel != a.RunLabel || b.Run != a.Run:
		return "label " + b.RunLabel
	case b.Mapped != a.Mapped || b.MapIndex != a.MapIndex:
		return "label " + taskpod.LabelMapIndex
	case before.Environment(key) != after.Environment(key):
		return "label " + key
	case before.Labels[taskpod.LabelEvidence] != after.Labels[taskpod.LabelEvidence]:
		return "label " + taskpod.LabelEvidence
	case before.ControllerOwned != after.ControllerOwned:
		return "the controller in its ownerReferences"
	case before.Stamped != after.Stamped:
		return "annotation " + taskpod.AnnotationEnvironment
	case before.Checked() && !after.Checked():
		return "label " + taskpod.LabelChecked
	}
	return ""
}
