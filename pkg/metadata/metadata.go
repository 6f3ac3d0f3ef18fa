// Package metadata reads objects of Kubernetes' core group by their metadata
// alone, which is all that most of solepod needs of them.
package metadata

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Object returns an empty object of a core kind, such as "Pod".
func Object(kind string) *metav1.PartialObjectMetadata {
	object := &metav1.PartialObjectMetadata{}
	object.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return object
}

// List returns an empty list of a core kind, such as "Pod".
func List(kind string) *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind + "List"))
	return list
}

// Reader reads from the cache first. It reads an object that the cache does not
// have from the API server: the object may be newer than the cache, as the
// namespace of a new environment is when its first task starts.
type Reader struct {
	Cache, Live client.Reader
}

// Get fills object, which [Object] has made. The error is NotFound only if the
// API server does not have the object.
func (r Reader) Get(ctx context.Context, key client.ObjectKey, object *metav1.PartialObjectMetadata) error {
	err := r.Cache.Get(ctx, key, object)
	if apierrors.IsNotFound(err) {
		err = r.Live.Get(ctx, key, object)
	}
	return err
}

// Each lists objects page by page and calls do with each. It holds one page in
// memory. It fails if the list expires on the way: to start over would call do
// twice with the same object.
func Each(ctx context.Context, from client.Reader, list client.ObjectList, do func(runtime.Object) error, options ...client.ListOption) error {
	pages := pager.New(func(ctx context.Context, page metav1.ListOptions) (runtime.Object, error) {
		list := list.DeepCopyObject().(client.ObjectList)
		err := from.List(ctx, list, append(options, &client.ListOptions{Raw: &page, Limit: page.Limit, Continue: page.Continue})...)
		return list, err
	})
	pages.PageBufferSize = 0
	pages.FullListIfExpired = false
	return pages.EachListItem(ctx, metav1.ListOptions{}, do)
}
