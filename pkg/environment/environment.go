// Package environment finds out which Airflow environment a request comes
// from: from a label on the requesting ServiceAccount, on its namespace, or
// on the namespace of the pod, whichever names one first.
package environment

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Resolver knows the environments of requesters.
type Resolver struct {
	// Label is the key that names an environment.
	Label string
	// Cache answers from memory; objects that it does not have yet are read
	// from Live, so that the first task of a new environment is not taken for
	// one without.
	Cache, Live client.Reader
}

// Resolve returns the environment of the user who sends a request for a pod
// in podNamespace, or "" if nothing names one. It fails only if the API
// server could not be asked; objects that do not exist name no environment.
func (r Resolver) Resolve(ctx context.Context, username, podNamespace string) (string, error) {
	for _, place := range places(username, podNamespace) {
		env, err := r.labelOf(ctx, place)
		if env != "" || err != nil {
			return env, err
		}
	}
	return "", nil
}

// place is an object whose label can name an environment.
type place struct {
	kind string
	key  types.NamespacedName
}

// places lists where the environment of a request can be written down, in the
// order in which they are asked. A ServiceAccount goes before its namespace
// because two Airflow releases often share one.
func places(username, podNamespace string) []place {
	var out []place
	if namespace, name, err := serviceaccount.SplitUsername(username); err == nil {
		out = append(out,
			place{"ServiceAccount", types.NamespacedName{Namespace: namespace, Name: name}},
			place{"Namespace", types.NamespacedName{Name: namespace}})
		if namespace == podNamespace {
			return out
		}
	}
	return append(out, place{"Namespace", types.NamespacedName{Name: podNamespace}})
}

func (r Resolver) labelOf(ctx context.Context, p place) (string, error) {
	object := Object(p.kind)
	err := r.Cache.Get(ctx, p.key, object)
	if apierrors.IsNotFound(err) {
		err = r.Live.Get(ctx, p.key, object)
	}
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the environment of %s %s: %w", p.kind, p.key, err)
	}
	return object.Labels[r.Label], nil
}

// Object is an empty object of a core kind, metadata only: what to read and
// what to cache.
func Object(kind string) *metav1.PartialObjectMetadata {
	object := &metav1.PartialObjectMetadata{}
	object.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return object
}
