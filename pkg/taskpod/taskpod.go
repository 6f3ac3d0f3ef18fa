// Package taskpod says what an Airflow task pod is: which pods are one, which
// task each of them runs, for which Airflow environment, and which pods
// Airflow will find when it looks for it.
//
// "Airflow" here is the KubernetesPodOperator of the provider
// apache-airflow-providers-cncf-kubernetes; versions in comments are the
// provider's. The package is pure: it reads metadata and does no I/O.
package taskpod

import (
	"strconv"
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
	// LabelExecutionDate stands in for LabelRun before 3.1.0.
	LabelExecutionDate = "execution_date"
	// LabelMapIndex is there only on the pods of a mapped task.
	LabelMapIndex = "map_index"
	LabelTry      = "try_number"
	// LabelChecked is patched to "True" on a pod that Airflow is done with:
	// no selector matches it from then on (2.0.3+).
	LabelChecked = "already_checked"
	// LabelWorker is on the pods of the KubernetesExecutor, which carry the
	// DAG, task and run of the task they work on, and never on a task pod.
	LabelWorker = "airflow-worker"
)

// AirflowLabels returns the keys of all labels above.
func AirflowLabels() []string {
	return []string{LabelOperator, LabelDAG, LabelTask, LabelRun, LabelExecutionDate, LabelMapIndex, LabelTry, LabelChecked, LabelWorker}
}

const (
	// True is how Airflow spells true in a label.
	True = "True"

	// DefaultEnvironmentLabel names the Airflow environment of a namespace, a
	// ServiceAccount or a pod, unless the configuration chooses another key.
	DefaultEnvironmentLabel = "airflow-environment"

	// AnnotationEnvironment says where a pod's environment label came from.
	AnnotationEnvironment = "solepod.io/environment"
	// Stamped is its value on a pod whose label solepod added. Airflow's
	// selector never contains such a label; it may contain a declared one.
	Stamped = "stamped"
)

// Pod is what solepod knows of a pod. It is small on purpose: a test writes
// one in a line.
type Pod struct {
	Namespace string
	Name      string
	UID       types.UID
	Labels    map[string]string
	// Stamped is true if solepod added the environment label.
	Stamped bool
	// ControllerOwned is true for the pods of a Job and the like, which share
	// their labels legitimately (KubernetesJobOperator with parallelism).
	ControllerOwned bool
	// Mirror is true for the API object of a kubelet's static pod.
	Mirror bool
	// Phase is empty where only the metadata is known.
	Phase corev1.PodPhase
	// Deleting is true once the pod has a deletionTimestamp.
	Deleting bool
	// Created is zero for a pod that is only being submitted.
	Created time.Time
}

// FromMeta reads a Pod from an object's metadata and, where it is known, the
// pod's phase.
func FromMeta(meta metav1.Object, phase corev1.PodPhase) Pod {
	annotations := meta.GetAnnotations()
	_, mirror := annotations[corev1.MirrorPodAnnotationKey]
	return Pod{
		Namespace:       meta.GetNamespace(),
		Name:            meta.GetName(),
		UID:             meta.GetUID(),
		Labels:          meta.GetLabels(),
		Stamped:         annotations[AnnotationEnvironment] == Stamped,
		ControllerOwned: metav1.GetControllerOfNoCopy(meta) != nil,
		Mirror:          mirror,
		Phase:           phase,
		Deleting:        meta.GetDeletionTimestamp() != nil,
		Created:         meta.GetCreationTimestamp().Time,
	}
}

// IsTask reports whether the pod runs an Airflow task through a
// KubernetesPodOperator or one of its subclasses.
func (p Pod) IsTask() bool {
	_, ok := p.Identity()
	return ok
}

// Guarded reports whether the pod is one that solepod decides on: a task pod
// that Airflow itself created. Pods of a controller and mirror pods are not.
func (p Pod) Guarded() bool {
	return !p.ControllerOwned && !p.Mirror && p.IsTask()
}

// Checked reports whether Airflow is done with the pod and no longer finds it.
func (p Pod) Checked() bool { return p.Labels[LabelChecked] == True }

// Finished reports whether the pod has ended or is being deleted; a pod that
// is not finished is live. A pod of unknown phase counts as live.
func (p Pod) Finished() bool {
	return p.Deleting || p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed
}

// Try is the task's try number, and whether the pod names one.
func (p Pod) Try() (int, bool) {
	n, err := strconv.Atoi(p.Labels[LabelTry])
	return n, err == nil
}

// Environment is the Airflow environment that the pod belongs to by the label
// key, or "" if it carries none.
func (p Pod) Environment(key string) string { return p.Labels[key] }

// Declares reports whether the pod's own Airflow set its environment by the
// label key, so that the label is part of Airflow's selector as well (7.4.1+).
func (p Pod) Declares(key string) bool { return p.Labels[key] != "" && !p.Stamped }
