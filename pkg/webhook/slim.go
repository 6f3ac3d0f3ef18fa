package webhook

import (
	"strings"
	"sync"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/solepod/solepod/pkg/taskpod"
)

// slimPods returns a transform for the cache of pods. It keeps the metadata that
// decisions need. Many pods share the same values, such as the name of a DAG: each
// value is kept once.
func slimPods(environmentLabel string, known *words) func(any) (any, error) {
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
				labels[key] = known.shared(value)
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
			TypeMeta: metav1.TypeMeta{Kind: known.shared(pod.Kind), APIVersion: known.shared(pod.APIVersion)},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: known.shared(pod.Namespace), Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
				CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
				Labels: labels, Annotations: annotations, OwnerReferences: owners,
			},
		}, nil
	}
}

// slimClaims returns a transform for the cache of claims. It drops the spec, which is
// for readers and written with each change.
func slimClaims(known *words) func(any) (any, error) {
	return func(object any) (any, error) {
		claim, ok := object.(*coordinationv1.Lease)
		if !ok {
			return object, nil
		}
		claim.ManagedFields, claim.Spec = nil, coordinationv1.LeaseSpec{}
		claim.Namespace = known.shared(claim.Namespace)
		labels := make(map[string]string, len(claim.Labels))
		for key, value := range claim.Labels {
			labels[known.shared(key)] = known.shared(value)
		}
		claim.Labels = labels
		return claim, nil
	}
}

// words has one copy of each word that was in use lately. (Package unique forgets a
// word at the next garbage collection without a reference to its Handle, and a label
// has no place for one. Then pods that arrive one by one would have a copy each.)
type words struct {
	mu sync.Mutex
	// Words become young when they are used. When there are too many, the young ones
	// become the old ones, and the old ones are forgotten.
	young, old map[string]string
}

// maxYoung is the maximum number of young words: with the old ones, about 2 MB.
const maxYoung = 10_000

// shared returns one copy of a word, however many objects have it.
func (w *words) shared(word string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.young[word]; ok {
		return known
	}
	known, ok := w.old[word]
	if !ok {
		known = strings.Clone(word) // not the buffer that it is a part of
	}
	if w.young == nil || len(w.young) == maxYoung {
		w.young, w.old = map[string]string{}, w.young
	}
	w.young[known] = known
	return known
}
