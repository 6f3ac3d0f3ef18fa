// Package environment finds out which Airflow environment a request comes
// from: from the configuration, or from a label on the requesting
// ServiceAccount, on its namespace, or on the namespace of the pod, whichever
// names one first.
package environment

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
)

// Resolver knows the environments of requesters.
type Resolver struct {
	// Label is the key that names an environment.
	Label string
	// Environments are those of the configuration. Who belongs to one by name
	// needs no label.
	Environments []config.Environment
	// Objects reads ServiceAccounts and Namespaces.
	Objects metadata.Reader
}

// Identify returns the environment that a user belongs to: by the
// configuration, by the label of the ServiceAccount (two Airflow releases often
// share a namespace), or by that of its namespace; "" for none. It fails if
// the configuration names several, or the API server could not be asked.
// Objects that do not exist name no environment.
func (r Resolver) Identify(ctx context.Context, user authenticationv1.UserInfo) (string, error) {
	env, err := r.configured(user)
	if env != "" || err != nil {
		return env, err
	}
	namespace, name, err := serviceaccount.SplitUsername(user.Username)
	if err != nil {
		return "", nil //nolint:nilerr // it is no ServiceAccount
	}
	if env, err = r.labelOf(ctx, "ServiceAccount", types.NamespacedName{Namespace: namespace, Name: name}); env != "" || err != nil {
		return env, err
	}
	return r.labelOf(ctx, "Namespace", types.NamespacedName{Name: namespace})
}

// Resolve returns the environment of a user who creates a pod in podNamespace:
// the user's own or, without one, the environment that the label of that
// namespace names.
func (r Resolver) Resolve(ctx context.Context, user authenticationv1.UserInfo, podNamespace string) (string, error) {
	env, err := r.Identify(ctx, user)
	if env != "" || err != nil {
		return env, err
	}
	return r.labelOf(ctx, "Namespace", types.NamespacedName{Name: podNamespace})
}

// configured returns the one environment whose configuration names the user.
func (r Resolver) configured(user authenticationv1.UserInfo) (string, error) {
	var names []string
	for _, e := range r.Environments {
		account := func(account string) bool {
			namespace, name, _ := strings.Cut(account, "/")
			return serviceaccount.MatchesUsername(namespace, name, user.Username)
		}
		group := func(group string) bool { return slices.Contains(user.Groups, group) }
		if slices.Contains(e.Users, user.Username) || slices.ContainsFunc(e.Groups, group) || slices.ContainsFunc(e.ServiceAccounts, account) {
			names = append(names, e.Name)
		}
	}
	switch len(names) {
	case 0:
		return "", nil
	case 1:
		return names[0], nil
	}
	return "", fmt.Errorf("the configuration assigns user %q to several environments: %s; let its users, groups and serviceAccounts name one",
		user.Username, strings.Join(names, ", "))
}

func (r Resolver) labelOf(ctx context.Context, kind string, key types.NamespacedName) (string, error) {
	object := metadata.Object(kind)
	err := r.Objects.Get(ctx, key, object)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the environment of %s %s: %w", kind, key, err)
	}
	return object.Labels[r.Label], nil
}
