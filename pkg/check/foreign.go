package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/taskpod"
)

// foreignHook is what decides whether a webhook is called for a claim.
type foreignHook struct {
	kind, configuration, name string
	rules                     []admissionregistrationv1.RuleWithOperations
	namespaces, objects       *metav1.LabelSelector
	match                     *admissionregistrationv1.MatchPolicyType
	conditions                []admissionregistrationv1.MatchCondition
	timeout                   *int32
}

// foreign warns of webhooks of others that are called when a claim is written. The
// create of a task pod waits for that write, and so for the webhook.
func (i *Installation) foreign(ctx context.Context, settings config.Configuration) (finding, error) {
	var namespace corev1.Namespace
	if err := i.Client.Get(ctx, client.ObjectKey{Name: i.Namespace}, &namespace); apierrors.IsNotFound(err) {
		return skipped("there is no namespace %s", i.Namespace), nil
	} else if err != nil {
		return finding{}, err
	}
	in := labels.Set{corev1.LabelMetadataName: namespace.Name}
	for key, value := range namespace.Labels {
		in[key] = value
	}
	hooks, err := i.foreignHooks(ctx)
	if err != nil {
		return finding{}, err
	}
	var found []string
	for _, h := range hooks {
		called, err := h.matches(in, settings.EnvironmentLabel)
		if err != nil {
			return finding{}, fmt.Errorf("%s %s: %w", h.kind, h.configuration, err)
		}
		if !called {
			continue
		}
		text := fmt.Sprintf("%s of %s %s", h.name, h.kind, h.configuration)
		if h.timeout != nil {
			text += fmt.Sprintf(" (timeout %d s)", *h.timeout)
		}
		if len(h.conditions) > 0 {
			text += ", unless its matchConditions exclude them"
		}
		found = append(found, text)
	}
	if len(found) > 0 {
		slices.Sort(found)
		return warning("called for the Leases in namespace %s: %s", i.Namespace, strings.Join(found, "; ")), nil
	}
	return ok("none of %d", len(hooks)), nil
}

func (i *Installation) foreignHooks(ctx context.Context) (hooks []foreignHook, err error) {
	var mutating admissionregistrationv1.MutatingWebhookConfigurationList
	if err := i.Client.List(ctx, &mutating); err != nil {
		return nil, err
	}
	for _, c := range mutating.Items {
		for _, w := range c.Webhooks {
			hooks = append(hooks, foreignHook{
				"MutatingWebhookConfiguration", c.Name, w.Name, w.Rules, w.NamespaceSelector, w.ObjectSelector, w.MatchPolicy, w.MatchConditions, w.TimeoutSeconds,
			})
		}
	}
	var validating admissionregistrationv1.ValidatingWebhookConfigurationList
	if err := i.Client.List(ctx, &validating); err != nil {
		return nil, err
	}
	for _, c := range validating.Items {
		for _, w := range c.Webhooks {
			hooks = append(hooks, foreignHook{
				"ValidatingWebhookConfiguration", c.Name, w.Name, w.Rules, w.NamespaceSelector, w.ObjectSelector, w.MatchPolicy, w.MatchConditions, w.TimeoutSeconds,
			})
		}
	}
	// solepod's own have a check of their own.
	return slices.DeleteFunc(hooks, func(h foreignHook) bool { return h.configuration == name }), nil
}

// matches reports whether the API server may call a webhook for a claim in a namespace
// with these labels. Values that differ from claim to claim count as matching.
func (h foreignHook) matches(namespace labels.Set, environmentLabel string) (bool, error) {
	if !slices.ContainsFunc(h.rules, h.selectsLeases) {
		return false, nil
	}
	for _, s := range []struct {
		selector *metav1.LabelSelector
		of       labels.Set
		varies   []string
	}{
		{h.namespaces, namespace, nil},
		{h.objects, labels.Set{claim.Label: "v1"}, append(taskpod.AirflowLabels(), claim.LabelNamespace, environmentLabel)},
	} {
		if s.selector == nil {
			continue // all
		}
		selector, err := metav1.LabelSelectorAsSelector(s.selector)
		if err != nil {
			return false, err
		}
		requirements, _ := selector.Requirements()
		for _, r := range requirements {
			if !slices.Contains(s.varies, r.Key()) && !r.Matches(s.of) {
				return false, nil
			}
		}
	}
	return true, nil
}

// selectsLeases reports whether a rule matches a write of a Lease.
func (h foreignHook) selectsLeases(r admissionregistrationv1.RuleWithOperations) bool {
	contains := func(values []string, one ...string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return slices.Contains(one, v) })
	}
	// By default, a rule for another version of a group matches this one, too.
	anyVersion := h.match == nil || *h.match == admissionregistrationv1.Equivalent
	return contains(r.APIGroups, coordinationv1.GroupName, "*") &&
		(anyVersion || contains(r.APIVersions, coordinationv1.SchemeGroupVersion.Version, "*")) &&
		contains(r.Resources, "leases", "*", "*/*") &&
		(r.Scope == nil || *r.Scope != admissionregistrationv1.ClusterScope) &&
		slices.ContainsFunc(r.Operations, func(o admissionregistrationv1.OperationType) bool {
			return o == admissionregistrationv1.OperationAll || o == admissionregistrationv1.Create || o == admissionregistrationv1.Update || o == admissionregistrationv1.Delete
		})
}
