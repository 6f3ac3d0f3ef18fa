package audit

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/retire"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Source is where a scan gets its pods from.
type Source struct {
	// Client is uncached, and knows the types of client-go's scheme.
	Client client.Reader
	// Namespace is solepod's own, with its claims.
	Namespace string
	// Configuration is solepod's.
	Configuration config.Configuration
	// Progress hears of each pod; nil for silence.
	Progress func()
}

// Collect reads what Scan needs, page by page. It keeps about half a KiB of
// each task pod.
func (s Source) Collect(ctx context.Context) (Cluster, error) {
	var c Cluster
	keep := interner{}
	err := metadata.Each(ctx, s.Client, &corev1.PodList{}, func(object runtime.Object) error {
		c.Pods = append(c.Pods, keep.pod(object.(*corev1.Pod), s.Configuration.EnvironmentLabel))
		if s.Progress != nil {
			s.Progress()
		}
		return nil
	}, client.MatchingLabels{taskpod.LabelOperator: taskpod.True})
	if err != nil {
		return Cluster{}, fmt.Errorf("listing task pods: %w", err)
	}
	// After the pods: whose pod was there is in no new claim only if it is gone.
	c.Claims = []Claim{}
	err = metadata.Each(ctx, s.Client, &coordinationv1.LeaseList{}, func(object runtime.Object) error {
		lease := object.(*coordinationv1.Lease)
		id, holders, ok := claim.Inspect(lease)
		c.Claims = append(c.Claims, Claim{Name: lease.Name, Identity: id, Holders: holders, Unreadable: !ok})
		return nil
	}, client.InNamespace(s.Namespace), client.HasLabels{claim.Label})
	if err != nil {
		return Cluster{}, fmt.Errorf("listing claims: %w", err)
	}
	if c.Environments, err = s.environments(ctx); err != nil {
		return Cluster{}, fmt.Errorf("listing environments: %w", err)
	}
	return c, nil
}

// environments are all that anything names but pods.
func (s Source) environments(ctx context.Context) (map[string]bool, error) {
	label := s.Configuration.EnvironmentLabel
	known := map[string]bool{}
	for _, e := range s.Configuration.Environments {
		known[e.Name] = true
	}
	for _, kind := range []string{"Namespace", "ServiceAccount"} {
		err := metadata.Each(ctx, s.Client, metadata.List(kind), func(object runtime.Object) error {
			known[object.(*metav1.PartialObjectMetadata).Labels[label]] = true
			return nil
		}, client.HasLabels{label})
		if err != nil {
			return nil, err
		}
	}
	return known, nil
}

// interner keeps one copy of equal strings: most labels of the pods of a DAG
// are the same.
type interner map[string]string

func (i interner) one(s string) string {
	if kept, ok := i[s]; ok {
		return kept
	}
	i[s] = s
	return s
}

// pod is what is kept of a pod: of its labels those that matter.
func (i interner) pod(object *corev1.Pod, environmentLabel string) Pod {
	p := Pod{Pod: taskpod.FromMeta(object, object.Status.Phase), ResourceVersion: object.ResourceVersion, Ended: ended(object)}
	_, p.Retired = object.Annotations[retire.Annotation]
	p.Namespace = i.one(p.Namespace)
	kept := labels.Set{}
	for _, key := range append(taskpod.AirflowLabels(), taskpod.LabelEvidence, environmentLabel) {
		if value, ok := p.Labels[key]; ok {
			kept[key] = i.one(value)
		}
	}
	p.Labels = kept
	return p
}

// ended is when the last container of a finished pod ended, or, of a pod whose
// containers nobody has seen end, when it was last heard of.
func ended(pod *corev1.Pod) time.Time {
	if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		return time.Time{}
	}
	var last time.Time
	later := func(t metav1.Time) {
		if t.After(last) {
			last = t.Time
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Terminated != nil {
			later(c.State.Terminated.FinishedAt)
		}
	}
	if last.IsZero() {
		later(pod.CreationTimestamp)
		for _, c := range pod.Status.Conditions {
			later(c.LastTransitionTime)
		}
	}
	return last
}
