package webhook

import (
	"unique"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/taskpod"
)

// slimPods returns a transform for the cache of pods. It keeps the metadata that
// decisions need. Many pods share the same values, such as the name of a DAG: each
// value is kept once.
func slimPods(environmentLabel string) func(any) (any, error) {
	read := append(taskpod.AirflowLabels(), taskpod.LabelEvidence, environmentLabel)
	// Cached objects are never changed.
	stamped := map[string]string{taskpod.AnnotationEnvironment: taskpod.Stamped}
	created := map[string]string{taskpod.AnnotationCreator: taskpod.CreatorAirflow}
	both := map[string]string{taskpod.AnnotationEnvironment: taskpod.Stamped, taskpod.AnnotationCreator: taskpod.CreatorAirflow}
	return func(object any) (any, error) {
		pod, ok := object.(*metav1.PartialObjectMetadata)
		if !ok {
			return object, nil // a DeletedFinalStateUnknown, whose pod is slim already
		}
		labels := make(map[string]string, min(len(read), len(pod.Labels)))
		for _, key := range read {
			if value, ok := pod.Labels[key]; ok {
				labels[key] = shared(value)
			}
		}
		annotations := map[string]string(nil)
		isStamped, isCreated := pod.Annotations[taskpod.AnnotationEnvironment] == taskpod.Stamped, pod.Annotations[taskpod.AnnotationCreator] == taskpod.CreatorAirflow
		value, isMirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
		switch {
		case isMirror:
			annotations = map[string]string{corev1.MirrorPodAnnotationKey: value}
		case isStamped && isCreated:
			annotations = both
		case isStamped:
			annotations = stamped
		case isCreated:
			annotations = created
		}
		var owners []metav1.OwnerReference
		if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
			owners = []metav1.OwnerReference{*owner}
		}
		return &metav1.PartialObjectMetadata{
			TypeMeta: metav1.TypeMeta{Kind: shared(pod.Kind), APIVersion: shared(pod.APIVersion)},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: shared(pod.Namespace), Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
				CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
				Labels: labels, Annotations: annotations, OwnerReferences: owners,
			},
		}, nil
	}
}

// slimClaims is a transform for the cache of claims. It drops the spec, which is for
// readers and written with each change.
func slimClaims(object any) (any, error) {
	claim, ok := object.(*coordinationv1.Lease)
	if !ok {
		return object, nil
	}
	claim.ManagedFields, claim.Spec = nil, coordinationv1.LeaseSpec{}
	claim.Namespace = shared(claim.Namespace)
	labels := make(map[string]string, len(claim.Labels))
	for key, value := range claim.Labels {
		labels[shared(key)] = shared(value)
	}
	claim.Labels = labels
	return claim, nil
}

// shared returns one copy of a word, however many objects have it.
func shared(word string) string { return unique.Make(word).Value() }
