// Package environment resolves requesters to environments. The first of these that
// names an environment decides: the configuration, the label of the requesting
// ServiceAccount, the label of its namespace, the label of the namespace of the pod.
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

// Resolver resolves requesters to environments.
type Resolver struct {
	// Label is the key of the environment label.
	Label string
	// Environments are those of the configuration. Their users, groups and
	// ServiceAccounts need no label.
	Environments []config.Environment
	// Objects reads ServiceAccounts and Namespaces.
	Objects metadata.Reader
}

// Identify returns the environment of a user: from the configuration, the label of
// the ServiceAccount (two releases of Airflow often share a namespace), or the label
// of its namespace. It returns "" if there is none. It fails if the configuration
// assigns the user to several environments, or a read fails. Objects that do not
// exist have no environment.
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

// Resolve returns the environment of a user that creates a pod in podNamespace: the
// user's own or, if there is none, that of the label of podNamespace.
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
