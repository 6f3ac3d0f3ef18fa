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

// Source reads the cluster to scan.
type Source struct {
	// Client is uncached, and has client-go's scheme.
	Client client.Reader
	// Namespace is solepod's own, which contains the claims.
	Namespace string
	// Configuration is that of the installation.
	Configuration config.Configuration
}

// Collect reads the cluster page by page. It keeps about half a KiB of each task pod.
func (s Source) Collect(ctx context.Context) (Cluster, error) {
	var c Cluster
	keep := interner{}
	err := metadata.Each(ctx, s.Client, &corev1.PodList{}, func(object runtime.Object) error {
		c.Pods = append(c.Pods, keep.pod(object.(*corev1.Pod), s.Configuration.EnvironmentLabel))
		return nil
	}, client.MatchingLabels{taskpod.LabelOperator: taskpod.True})
	if err != nil {
		return Cluster{}, fmt.Errorf("listing task pods: %w", err)
	}
	// After the pods: a pod that is in no claim then was deleted meanwhile.
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

// environments returns the environments of labels and of the configuration, without
// those of pods.
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

// interner keeps one copy of equal strings. Most labels of the pods of a DAG are
// equal.
type interner map[string]string

func (i interner) one(s string) string {
	if kept, ok := i[s]; ok {
		return kept
	}
	i[s] = s
	return s
}

// pod returns the part of a pod that Scan needs.
func (i interner) pod(object *corev1.Pod, environmentLabel string) Pod {
	p := Pod{Pod: taskpod.FromPod(object), ResourceVersion: object.ResourceVersion, Ended: ended(object)}
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

// ended returns the time at which the last container of a finished pod ended, or the base
// container of a pod in which others run on. If no
// container has one, it is the time of the last change of the pod's conditions.
func ended(pod *corev1.Pod) time.Time {
	if over := taskpod.FromPod(pod).Over; over != nil {
		return over.At
	}
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
