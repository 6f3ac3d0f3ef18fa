// Package podindex finds the cached task pods that a selector of Airflow could
// match, by their identity.
package podindex

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/solepod/solepod/pkg/taskpod"
)

// Index is a cache of pods with the index of [Indexers]. A toolscache.Indexer
// implements it.
type Index interface {
	ByIndex(index, key string) ([]any, error)
}

const name = "solepod.identity"

// Add adds the index to an informer on pods. (The index of a client.FieldIndexer
// has two keys for each pod, with and without its namespace. An identity
// contains the namespace, and the second key would take as much memory as the
// pods.)
func Add(informer cache.Informer) (Index, error) {
	shared, ok := informer.(toolscache.SharedIndexInformer)
	if !ok {
		return nil, fmt.Errorf("want a SharedIndexInformer, not %T", informer)
	}
	return shared.GetIndexer(), shared.AddIndexers(Indexers())
}

// Indexers returns the index function for a cache of pod metadata.
func Indexers() toolscache.Indexers {
	return toolscache.Indexers{name: func(object any) ([]string, error) {
		pod, ok := object.(metav1.Object)
		if !ok {
			return nil, fmt.Errorf("want a pod's metadata, not %T", object)
		}
		return Keys(pod), nil
	}}
}

// Keys returns the keys of a pod: none if it is not a task pod, its identity's
// and, if it is mapped, its family's.
func Keys(pod metav1.Object) []string {
	id, ok := taskpod.FromMeta(pod, "").Identity()
	switch {
	case !ok:
		return nil
	case id.Mapped:
		return []string{id.Hash(), Family(id)}
	}
	return []string{id.Hash()}
}

// Family is the key of all mapped pods of an identity's task.
func Family(id taskpod.Identity) string { return "mapped-" + id.AnyIndex().Hash() }

// List returns the pods with a key: an [taskpod.Identity.Hash], or a [Family].
// The cache does not have their phase. Their labels belong to the cache: the
// caller must not change them.
func List(from Index, key string) ([]taskpod.Pod, error) {
	objects, err := from.ByIndex(name, key)
	if err != nil {
		return nil, fmt.Errorf("looking up the pods of %s: %w", key, err)
	}
	pods := make([]taskpod.Pod, len(objects))
	for i := range objects {
		pods[i] = taskpod.FromMeta(objects[i].(metav1.Object), "")
	}
	return pods, nil
}
