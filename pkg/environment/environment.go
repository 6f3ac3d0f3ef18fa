// Package environment resolves requesters to environments. The first of these that
// names an environment decides: the configuration, the label of the requesting
// ServiceAccount, the label of its namespace. The label of the namespace of a pod is
// a guess, for requesters without an environment of their own.
package environment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/policy"
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

// AmbiguousError is the error of a user that the configuration assigns to several
// environments, for example by two groups.
type AmbiguousError struct {
	Username     string
	Environments []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("the configuration assigns user %q to several environments: %s; let its users, groups and serviceAccounts name one",
		e.Username, strings.Join(e.Environments, ", "))
}

// Identify returns the environment of a user: from the configuration, the label of
// the ServiceAccount (two releases of Airflow often share a namespace), or the label
// of its namespace. It returns "" if there is none. It returns an [AmbiguousError] if
// the configuration assigns the user to several environments, or the error of a read.
// Objects that do not exist have no environment.
func (r Resolver) Identify(ctx context.Context, user authenticationv1.UserInfo) (string, error) {
	switch names := r.configured(user); len(names) {
	case 0:
	case 1:
		return names[0], nil
	default:
		return "", &AmbiguousError{Username: user.Username, Environments: names}
	}
	namespace, name, err := serviceaccount.SplitUsername(user.Username)
	if err != nil {
		return "", nil //nolint:nilerr // it is no ServiceAccount
	}
	if env, err := r.labelOf(ctx, "ServiceAccount", types.NamespacedName{Namespace: namespace, Name: name}); env != "" || err != nil {
		return env, err
	}
	return r.labelOf(ctx, "Namespace", types.NamespacedName{Name: namespace})
}

// Resolve returns the requester that a user is. If it has no environment of its own,
// the label of podNamespace is a guess; podNamespace is "" for no guess.
func (r Resolver) Resolve(ctx context.Context, user authenticationv1.UserInfo, podNamespace string) (policy.Requester, error) {
	requester := policy.Requester{Username: user.Username}
	env, err := r.Identify(ctx, user)
	var ambiguous *AmbiguousError
	switch {
	case errors.As(err, &ambiguous):
		requester.Ambiguous = ambiguous.Environments
		return requester, nil
	case err != nil || env != "" || podNamespace == "":
		requester.Environment = env
		return requester, err
	}
	requester.Environment, err = r.labelOf(ctx, "Namespace", types.NamespacedName{Name: podNamespace})
	requester.Guessed = requester.Environment != ""
	return requester, err
}

// Exists reports whether a label of a namespace or ServiceAccount, or the configuration,
// names an environment.
func (r Resolver) Exists(ctx context.Context, environment string) (bool, error) {
	if slices.ContainsFunc(r.Environments, func(e config.Environment) bool { return e.Name == environment }) {
		return true, nil
	}
	for _, kind := range []string{"Namespace", "ServiceAccount"} {
		list := metadata.List(kind)
		if err := r.Objects.Cache.List(ctx, list, client.MatchingLabels{r.Label: environment}, client.Limit(1)); err != nil {
			return false, fmt.Errorf("listing the environments of each %s: %w", kind, err)
		}
		if len(list.Items) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// configured returns the environments whose configuration names the user.
func (r Resolver) configured(user authenticationv1.UserInfo) []string {
	var names []string
	for _, e := range r.Environments {
		named := func(pattern string) bool { return config.MatchesUser(pattern, user.Username) }
		account := func(account string) bool {
			namespace, name, _ := strings.Cut(account, "/")
			return serviceaccount.MatchesUsername(namespace, name, user.Username)
		}
		group := func(group string) bool { return slices.Contains(user.Groups, group) }
		if slices.ContainsFunc(e.Users, named) || slices.ContainsFunc(e.Groups, group) || slices.ContainsFunc(e.ServiceAccounts, account) {
			names = append(names, e.Name)
		}
	}
	return names
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
