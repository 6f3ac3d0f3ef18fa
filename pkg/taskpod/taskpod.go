// Package taskpod describes Airflow's task pods: which pods are task pods, which
// task a pod runs, which environment it belongs to, and which pods Airflow's
// selector for it matches.
//
// "Airflow" here is the KubernetesPodOperator of the provider
// apache-airflow-providers-cncf-kubernetes. Versions in comments are versions of
// that provider. The package is pure: it reads metadata and does no I/O.
package taskpod

import (
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels that Airflow puts on the pods of its tasks
// (KubernetesPodOperator._get_ti_pod_labels).
const (
	// LabelOperator is "True" on every pod of a KubernetesPodOperator.
	LabelOperator = "kubernetes_pod_operator"
	LabelDAG      = "dag_id"
	LabelTask     = "task_id"
	LabelRun      = "run_id"
	// LabelExecutionDate is used instead of LabelRun before 3.1.0.
	LabelExecutionDate = "execution_date"
	// LabelMapIndex is on the pods of mapped tasks only.
	LabelMapIndex = "map_index"
	LabelTry      = "try_number"
	// LabelChecked is set to "True" when Airflow has finished with a pod. From
	// then on, no selector of Airflow matches the pod (2.0.3+).
	LabelChecked = "already_checked"
	// LabelWorker is on the pods of the KubernetesExecutor, which also carry the
	// DAG, task and run of their task. It is never on a task pod.
	LabelWorker = "airflow-worker"
)

const (
	// LabelEvidence is the evidence that Airflow's selector for the pod contains the
	// environment label. The file that adds the environment to the selector also adds
	// LabelEvidence to the pod (manifests/airflow/solepod_declare.py).
	LabelEvidence = "solepod.io/declared"
	// EvidenceV1 is the value of LabelEvidence.
	EvidenceV1 = "v1"

	// LabelDeclare on a namespace, with the value "enabled", has solepod put that file
	// into the pods of Airflow.
	LabelDeclare = "solepod.io/declare"
)

// AirflowLabels returns the keys of the labels that Airflow itself sets.
func AirflowLabels() []string {
	return []string{LabelOperator, LabelDAG, LabelTask, LabelRun, LabelExecutionDate, LabelMapIndex, LabelTry, LabelChecked, LabelWorker}
}

const (
	// True is Airflow's value of labels that are true.
	True = "True"

	// DefaultEnvironmentLabel is the default key of the environment label, on
	// namespaces, ServiceAccounts and pods.
	DefaultEnvironmentLabel = "airflow-environment"

	// AnnotationEnvironment states where the environment label of a pod comes from.
	AnnotationEnvironment = "solepod.io/environment"
	// Stamped is the value of AnnotationEnvironment on a pod whose environment label
	// solepod has added. Airflow's selector never contains such a label.
	Stamped = "stamped"

	// AnnotationCreator states that an Airflow has created a pod with a controller
	// reference, which some set for garbage collection. Only solepod sets it.
	AnnotationCreator = "solepod.io/created-by"
	// CreatorAirflow is the value of AnnotationCreator.
	CreatorAirflow = "airflow"
)

// Pod is the part of a pod that decisions depend on.
type Pod struct {
	Namespace string
	Name      string
	UID       types.UID
	Labels    map[string]string
	// Stamped is true if solepod added the environment label.
	Stamped bool
	// ControllerOwned is true for pods that a controller, such as a Job's, has created.
	// They share their labels on purpose (KubernetesJobOperator with parallelism). It is
	// false for pods to which an Airflow has given a controller reference.
	ControllerOwned bool
	// Mirror is true for the mirror pod of a static pod.
	Mirror bool
	// Phase is empty if only the metadata is known.
	Phase corev1.PodPhase
	// Over is the end of the base container while others run on, and nil otherwise.
	Over *Over
	// Deleting is true once the pod has a deletionTimestamp. Deletion has what prevents
	// its end, if the whole pod is known.
	Deleting bool
	Deletion Deletion
	// Created is zero for a pod that does not exist yet.
	Created time.Time
}

// Over is the state of a pod whose task is over although the pod runs: its base container
// has ended, and others, such as a service mesh's, have not.
type Over struct {
	// Container is the name of the base container, and At is when it ended.
	Container string
	At        time.Time
	// Running are the names of the others.
	Running []string
}

// Deletion is the state of a pod that is being deleted.
type Deletion struct {
	// Due is when the kubelet kills the pod: the deletionTimestamp, which includes the
	// grace period.
	Due time.Time
	// Finalizers and Node are what a pod waits for that stays longer.
	Finalizers []string
	Node       string
}

// WaitsFor returns in words what the end of the pod waits for.
func (d Deletion) WaitsFor() string {
	var parts []string
	if len(d.Finalizers) > 0 {
		parts = append(parts, "its finalizers: "+strings.Join(d.Finalizers, ", "))
	}
	if d.Node != "" {
		parts = append(parts, "the kubelet of node "+d.Node)
	}
	if len(parts) == 0 {
		return "it waits for the API server"
	}
	return "it waits for " + strings.Join(parts, "; ")
}

// baseContainer is the name of the container of the task, unless the operator sets
// base_container_name. Airflow puts it first.
const baseContainer = "base"

// FromPod returns the Pod of an object.
func FromPod(object *corev1.Pod) Pod {
	p := FromMeta(object, object.Status.Phase)
	p.Over = overOf(object)
	if p.Deleting {
		p.Deletion = Deletion{Due: object.DeletionTimestamp.Time, Finalizers: object.Finalizers, Node: object.Spec.NodeName}
	}
	return p
}

func overOf(object *corev1.Pod) *Over {
	if object.Status.Phase != corev1.PodRunning || object.Spec.RestartPolicy != corev1.RestartPolicyNever || len(object.Spec.Containers) == 0 {
		return nil
	}
	name := object.Spec.Containers[0].Name
	if slices.ContainsFunc(object.Spec.Containers, func(c corev1.Container) bool { return c.Name == baseContainer }) {
		name = baseContainer
	}
	over := &Over{Container: name}
	for _, c := range object.Status.ContainerStatuses {
		switch {
		case c.Name == name && c.State.Terminated == nil:
			return nil
		case c.Name == name:
			over.At = c.State.Terminated.FinishedAt.Time
		case c.State.Terminated == nil:
			over.Running = append(over.Running, c.Name)
		}
	}
	if over.At.IsZero() || len(over.Running) == 0 {
		return nil
	}
	return over
}

// FromMeta returns the Pod of an object's metadata and phase. The phase is "" if
// it is not known.
func FromMeta(meta metav1.Object, phase corev1.PodPhase) Pod {
	annotations := meta.GetAnnotations()
	_, mirror := annotations[corev1.MirrorPodAnnotationKey]
	return Pod{
		Namespace:       meta.GetNamespace(),
		Name:            meta.GetName(),
		UID:             meta.GetUID(),
		Labels:          meta.GetLabels(),
		Stamped:         annotations[AnnotationEnvironment] == Stamped,
		ControllerOwned: metav1.GetControllerOfNoCopy(meta) != nil && annotations[AnnotationCreator] != CreatorAirflow,
		Mirror:          mirror,
		Phase:           phase,
		Deleting:        meta.GetDeletionTimestamp() != nil,
		Created:         meta.GetCreationTimestamp().Time,
	}
}

// IsTask reports whether the pod is a task pod: a pod of a KubernetesPodOperator
// or one of its subclasses.
func (p Pod) IsTask() bool {
	_, ok := p.Identity()
	return ok
}

// Guarded reports whether solepod decides on the pod: a task pod that is neither
// a pod of a controller nor a mirror pod.
func (p Pod) Guarded() bool {
	return !p.ControllerOwned && !p.Mirror && p.IsTask()
}

// Checked reports whether Airflow has finished with the pod and no longer finds
// it.
func (p Pod) Checked() bool { return p.Labels[LabelChecked] == True }

// Finished reports whether the task of the pod has ended, or the pod is being deleted. A
// pod that is not finished is live, and so is a pod of unknown phase.
func (p Pod) Finished() bool {
	return p.Deleting || p.Over != nil || p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed
}

// Try returns the try number, and whether the pod has one.
func (p Pod) Try() (int, bool) {
	n, err := strconv.Atoi(p.Labels[LabelTry])
	return n, err == nil
}

// Environment returns the value of the environment label, or "" if the pod has no
// such label. key is the key of the label.
func (p Pod) Environment(key string) string { return p.Labels[key] }

// Declares reports whether the selector of the pod's Airflow contains the
// environment label. The evidence is LabelEvidence: a label alone may come from a
// pod template, a pod_mutation_hook or another webhook, and is then not part of
// the selector.
func (p Pod) Declares(key string) bool {
	return p.Labels[key] != "" && p.Labels[LabelEvidence] == EvidenceV1 && !p.Stamped
}
