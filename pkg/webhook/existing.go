package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Indexes of the pod cache, by identity and by identity without map index.
const (
	indexIdentity = "solepod.identity"
	indexAnyIndex = "solepod.identity-of-any-map-index"
)

// podIndexes says under which keys of each index a pod is found.
func podIndexes() map[string]client.IndexerFunc {
	by := func(key func(taskpod.Identity) string) client.IndexerFunc {
		return func(object client.Object) []string {
			id, ok := taskpod.FromMeta(object, "").Identity()
			if !ok {
				return nil
			}
			return []string{key(id)}
		}
	}
	return map[string]client.IndexerFunc{
		indexIdentity: by(taskpod.Identity.String),
		indexAnyIndex: by(func(id taskpod.Identity) string { return id.AnyIndex().String() }),
	}
}

// podReader finds the pods that an admission could collide with.
type podReader struct {
	cache, live client.Reader
}

// cached returns the known pods whose identity overlaps with id. Their phase
// is not in the cache: they count as live.
func (r podReader) cached(ctx context.Context, id taskpod.Identity) ([]policy.Existing, error) {
	if !id.Mapped {
		return r.lookup(ctx, indexAnyIndex, id)
	}
	// Of a mapped task, only the pod of the same index and one without any
	// can overlap. A task can have thousands of others.
	same, err := r.lookup(ctx, indexIdentity, id)
	if err != nil {
		return nil, err
	}
	unmapped, err := r.lookup(ctx, indexIdentity, id.AnyIndex())
	return append(same, unmapped...), err
}

func (r podReader) lookup(ctx context.Context, index string, id taskpod.Identity) ([]policy.Existing, error) {
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	err := r.cache.List(ctx, &list, client.InNamespace(id.Namespace), client.MatchingFields{index: id.String()},
		client.UnsafeDisableDeepCopy) // read only
	if err != nil {
		return nil, fmt.Errorf("looking up pods of %s: %w", id, err)
	}
	existing := make([]policy.Existing, 0, len(list.Items))
	for i := range list.Items {
		existing = append(existing, policy.Existing{Pod: taskpod.FromMeta(&list.Items[i], "")})
	}
	return existing, nil
}

// current reads the pods anew from the API server. Pods that are gone, or have
// been replaced by another of the same name, are told as what is there now.
func (r podReader) current(ctx context.Context, existing []policy.Existing) ([]policy.Existing, error) {
	var now []policy.Existing
	for _, x := range existing {
		var pod corev1.Pod
		err := r.live.Get(ctx, client.ObjectKey{Namespace: x.Namespace, Name: x.Name}, &pod)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("reading pod %s/%s: %w", x.Namespace, x.Name, err)
		default:
			now = append(now, policy.Existing{Pod: taskpod.FromMeta(&pod, pod.Status.Phase)})
		}
	}
	return now, nil
}
