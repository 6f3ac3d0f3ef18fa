package webhook

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// podReader reads the pods that can conflict with a new one.
type podReader struct {
	index       podindex.Index
	cache, live client.Reader
}

// cached returns the cached pods whose identity overlaps id. The cache does not
// have their phase: they count as live.
func (r podReader) cached(id taskpod.Identity) ([]policy.Existing, error) {
	other := podindex.Family(id)
	if id.Mapped {
		// Only pods of the same index and pods without an index overlap. A task can
		// have thousands of others.
		other = id.AnyIndex().Hash()
	}
	var existing []policy.Existing
	for _, key := range []string{id.Hash(), other} {
		pods, err := podindex.List(r.index, key)
		if err != nil {
			return nil, err
		}
		for _, pod := range pods {
			existing = append(existing, policy.Existing{Pod: pod})
		}
	}
	return existing, nil
}

// current reads a pod from the API server. It returns nil if there is none, and the
// new pod if the name was reused.
func (r podReader) current(ctx context.Context, x policy.Existing) (*policy.Existing, error) {
	var pod corev1.Pod
	err := r.live.Get(ctx, client.ObjectKey{Namespace: x.Namespace, Name: x.Name}, &pod)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(x.Namespace, x.Name, err)
	}
	return &policy.Existing{Pod: taskpod.FromPod(&pod)}, nil
}

// cachedNamed returns the cached pod with the name of a pod, or nil.
func (r podReader) cachedNamed(ctx context.Context, pod taskpod.Pod) *taskpod.Pod {
	object := metadata.Object("Pod")
	if err := r.cache.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: pod.Name}, object); err != nil {
		return nil // the claim finds it
	}
	named := taskpod.FromMeta(object, "")
	return &named
}

// named returns the pod with a name, or nil if there is none. The cache has task
// pods only.
func (r podReader) named(ctx context.Context, namespace, name string) (*taskpod.Pod, error) {
	object := metadata.Object("Pod")
	key := client.ObjectKey{Namespace: namespace, Name: name}
	err := metadata.Reader{Cache: r.cache, Live: r.live}.Get(ctx, key, object)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, unreadable(namespace, name, err)
	}
	pod := taskpod.FromMeta(object, "")
	return &pod, nil
}

func unreadable(namespace, name string, err error) error {
	return fmt.Errorf("reading pod %s/%s: %w", namespace, name, err)
}
