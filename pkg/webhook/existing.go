package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Indexes of the pod cache, by identity and by identity without map index.
const (
	indexIdentity = "solepod.identity"
	indexAnyIndex = "solepod.identity-of-any-map-index"
)

func indexPods(ctx context.Context, indexer client.FieldIndexer) error {
	keys := func(key func(taskpod.Identity) taskpod.Identity) client.IndexerFunc {
		return func(object client.Object) []string {
			id, ok := taskpod.FromMeta(object, "").Identity()
			if !ok {
				return nil
			}
			return []string{key(id).String()}
		}
	}
	exact := func(id taskpod.Identity) taskpod.Identity { return id }
	if err := indexer.IndexField(ctx, environment.Object("Pod"), indexIdentity, keys(exact)); err != nil {
		return err
	}
	return indexer.IndexField(ctx, environment.Object("Pod"), indexAnyIndex, keys(taskpod.Identity.AnyIndex))
}

// podReader finds the pods that an admission could collide with.
type podReader struct {
	cache, live client.Reader
}

// cached returns the known pods whose identity overlaps with id. Their phase
// is not in the cache: they count as live.
func (r podReader) cached(ctx context.Context, id taskpod.Identity) ([]policy.Existing, error) {
	if !id.Mapped {
		return r.lookup(ctx, id.Namespace, indexAnyIndex, id)
	}
	// Of a mapped task, only the pod of the same index and one without any
	// can overlap. A task can have thousands of others.
	same, err := r.lookup(ctx, id.Namespace, indexIdentity, id)
	if err != nil {
		return nil, err
	}
	unmapped, err := r.lookup(ctx, id.Namespace, indexIdentity, id.AnyIndex())
	return append(same, unmapped...), err
}

func (r podReader) lookup(ctx context.Context, namespace, index string, id taskpod.Identity) ([]policy.Existing, error) {
	var list metav1.PartialObjectMetadataList
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	err := r.cache.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{index: id.String()},
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
