package check

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/metadata"
)

// requesters checks that each Airflow has one environment of its own: that no
// environment is guessed, and that the ServiceAccounts of a Helm release have the same.
func requesters(scan func() (scan, error)) func(*Installation, context.Context, config.Configuration) (finding, error) {
	return func(i *Installation, ctx context.Context, settings config.Configuration) (finding, error) {
		s, err := scan()
		if err != nil {
			return finding{}, err
		}
		guessed, err := i.guessed(ctx, settings, s)
		if err != nil {
			return finding{}, err
		}
		split, err := i.split(ctx, settings)
		if err != nil {
			return finding{}, err
		}
		if problems := slices.Concat(guessed, split); len(problems) > 0 {
			return warning("%s", strings.Join(problems, "; ")), nil
		}
		return ok("each has an environment of its own, or none"), nil
	}
}

// guessed returns the ServiceAccounts that have created task pods and have the
// environment of the namespace of their pods, because they have none of their own.
func (i *Installation) guessed(ctx context.Context, settings config.Configuration, s scan) ([]string, error) {
	creators := map[string]map[string]bool{} // namespaces of pods, by user name
	for _, claim := range s.cluster.Claims {
		for _, holder := range claim.Holders {
			if _, _, err := serviceaccount.SplitUsername(holder.Requester); err == nil && claim.Identity.Namespace != "" {
				if creators[holder.Requester] == nil {
					creators[holder.Requester] = map[string]bool{}
				}
				creators[holder.Requester][claim.Identity.Namespace] = true
			}
		}
	}
	var problems []string
	for _, creator := range slices.Sorted(maps.Keys(creators)) {
		own, err := i.identify(ctx, settings, creator)
		if err != nil {
			return nil, err
		}
		if own != "" {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(creators[creator])) {
			var namespace corev1.Namespace
			if err := i.Client.Get(ctx, client.ObjectKey{Name: name}, &namespace); client.IgnoreNotFound(err) != nil {
				return nil, err
			}
			if guess := namespace.Labels[settings.EnvironmentLabel]; guess != "" {
				problems = append(problems, fmt.Sprintf("%s has no environment and creates task pods in namespace %s: the environment %s is a guess", creator, name, guess))
			}
		}
	}
	return problems, nil
}

// split returns the ServiceAccounts of one Helm release that belong to different
// environments. Airflow's components have several accounts, and each can touch the
// pods of a task.
func (i *Installation) split(ctx context.Context, settings config.Configuration) ([]string, error) {
	type release struct{ namespace, name string }
	accounts := map[release]map[string]string{} // an account of each environment
	err := metadata.Each(ctx, i.Client, metadata.List("ServiceAccount"), func(each runtime.Object) error {
		account := each.(*metav1.PartialObjectMetadata)
		of := release{account.Namespace, cmp.Or(account.Labels["release"], account.Labels["app.kubernetes.io/instance"])}
		if of.name == "" {
			return nil
		}
		own, err := i.identify(ctx, settings, serviceaccount.MakeUsername(account.Namespace, account.Name))
		if own == "" || err != nil {
			return err
		}
		if accounts[of] == nil {
			accounts[of] = map[string]string{}
		}
		if first := accounts[of][own]; first == "" || account.Name < first {
			accounts[of][own] = account.Name
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var problems []string
	for of, environments := range accounts {
		if len(environments) < 2 {
			continue
		}
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(environments)) {
			parts = append(parts, fmt.Sprintf("ServiceAccount %s to %s", environments[name], name))
		}
		problems = append(problems, fmt.Sprintf("the release %s in namespace %s belongs to several environments: %s", of.name, of.namespace, strings.Join(parts, ", ")))
	}
	slices.Sort(problems)
	return problems, nil
}

// identify returns the environment of a ServiceAccount, or "".
func (i *Installation) identify(ctx context.Context, settings config.Configuration, username string) (string, error) {
	resolver := environment.Resolver{
		Label: settings.EnvironmentLabel, Environments: settings.Environments, Objects: metadata.Reader{Cache: i.Client, Live: i.Client},
	}
	user := authenticationv1.UserInfo{Username: username}
	if namespace, _, err := serviceaccount.SplitUsername(username); err == nil {
		user.Groups = serviceaccount.MakeGroupNames(namespace)
	}
	return resolver.Identify(ctx, user)
}
