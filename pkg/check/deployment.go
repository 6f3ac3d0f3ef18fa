package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
)

const name = installation.Name

// oldest is the oldest version of Kubernetes that the tests cover.
const oldest = "1.34"

func (i *Installation) key() client.ObjectKey {
	return client.ObjectKey{Namespace: i.Namespace, Name: name}
}

func (i *Installation) kubernetes(context.Context) (finding, error) {
	got, err := i.KubernetesVersion()
	if err != nil {
		return finding{}, err
	}
	parsed, err := version.ParseGeneric(got)
	if err != nil {
		return finding{}, err
	}
	if !parsed.AtLeast(version.MustParseGeneric(oldest)) {
		return warning("%s; solepod is tested with %s and newer", got, oldest), nil
	}
	return ok("%s", got), nil
}

func (i *Installation) deployment(ctx context.Context) (finding, error) {
	var d appsv1.Deployment
	if err := i.Client.Get(ctx, i.key(), &d); apierrors.IsNotFound(err) {
		return failed("there is no Deployment %s", i.key()), nil
	} else if err != nil {
		return finding{}, err
	}
	image := d.Spec.Template.Spec.Containers[0].Image
	installed := d.Labels["app.kubernetes.io/version"]
	if installed != i.Version {
		return warning("version %s is installed (%s), and this is solepod %s", installed, image, i.Version), nil
	}
	return ok("%s", image), nil
}

func (i *Installation) replicas(ctx context.Context) (finding, error) {
	var d appsv1.Deployment
	if err := i.Client.Get(ctx, i.key(), &d); apierrors.IsNotFound(err) {
		return skipped("there is no Deployment"), nil
	} else if err != nil {
		return finding{}, err
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	detail := fmt.Sprintf("%d of %d", d.Status.ReadyReplicas, want)
	switch {
	case d.Status.ReadyReplicas < want || d.Status.ReadyReplicas == 0:
		return failed("%s", detail), nil
	case want == 1:
		return warning("1 of 1: no replica responds while it restarts"), nil
	case d.Status.UpdatedReplicas < want:
		return warning("%s ready, %d up to date", detail, d.Status.UpdatedReplicas), nil
	}
	return ok("%s", detail), nil
}

func (i *Installation) spread(ctx context.Context) (finding, error) {
	var pods corev1.PodList
	if err := i.Client.List(ctx, &pods, client.InNamespace(i.Namespace), client.MatchingLabels{"app.kubernetes.io/name": name}); err != nil {
		return finding{}, err
	}
	byNode := map[string]int{}
	for _, pod := range pods.Items {
		if pod.Spec.NodeName != "" && pod.DeletionTimestamp == nil {
			byNode[pod.Spec.NodeName]++
		}
	}
	var nodes corev1.NodeList
	if err := i.Client.List(ctx, &nodes); err != nil {
		return finding{}, err
	}
	switch {
	case len(pods.Items) < 2:
		return skipped("there are fewer than two replicas"), nil
	case len(byNode) > 1:
		return ok("%d nodes", len(byNode)), nil
	case len(nodes.Items) == 1:
		return skipped("the cluster has one node"), nil
	}
	return warning("all replicas run on the same node"), nil
}

// settings reads the configuration of the installation. It returns a finding
// instead if the configuration is missing or invalid, and an error if the API
// server does not return it.
func (i *Installation) settings(ctx context.Context) (config.Configuration, *finding, error) {
	c, exists, err := installation.Configuration(ctx, i.Client, i.Namespace)
	var f finding
	switch {
	case err != nil && !exists:
		return c, nil, err
	case err != nil:
		f = failed("%v", err)
	case !exists:
		f = failed("there is no ConfigMap %s", i.key())
	default:
		return c, nil, nil
	}
	return c, &f, nil
}

func (i *Installation) configuration(ctx context.Context) (finding, error) {
	c, found, err := i.settings(ctx)
	if err != nil || found != nil {
		return deref(found), err
	}
	if c.Enforcement == config.EnforcementWarn {
		return warning("enforcement is Warn, but Airflow's Kubernetes client shows no warnings; see solepod's log, metrics and events"), nil
	}
	if c.Enforcement != config.EnforcementDeny {
		return warning("enforcement is %s", c.Enforcement), nil
	}
	return ok("enforcement %s, injection %s, retries %s, foreignAccess %s", c.Enforcement, c.Injection, c.Retries, c.ForeignAccess), nil
}

// configured returns a check that depends on the configuration. Without a valid
// configuration, it is skipped: its result for the default configuration could be
// wrong.
func configured(run func(*Installation, context.Context, config.Configuration) (finding, error)) func(*Installation, context.Context) (finding, error) {
	return func(i *Installation, ctx context.Context) (finding, error) {
		c, found, err := i.settings(ctx)
		switch {
		case err != nil:
			return finding{}, fmt.Errorf("reading the configuration: %w", err)
		case found != nil:
			return skipped("the configuration is missing or invalid"), nil
		}
		return run(i, ctx, c)
	}
}

// secret returns the name of the Secret with the serving certificate, and whether
// solepod issues the certificate.
func (i *Installation) secret(ctx context.Context) (secret string, own bool, err error) {
	var d appsv1.Deployment
	if err := i.Client.Get(ctx, i.key(), &d); err != nil {
		return "", false, err
	}
	if secret, own := argument(&d, "--cert-secret="); own {
		return secret, true, nil
	}
	for _, volume := range d.Spec.Template.Spec.Volumes {
		if volume.Secret != nil {
			return volume.Secret.SecretName, false, nil
		}
	}
	return "", false, errors.New("the Deployment names no Secret with certificates")
}

// argument returns the value of a flag in the Deployment, and whether it is set. A flag
// with a value ends with an equals sign, as in the chart.
func argument(d *appsv1.Deployment, flag string) (value string, given bool) {
	for _, container := range d.Spec.Template.Spec.Containers {
		for _, arg := range container.Args {
			if value, given := strings.CutPrefix(arg, flag); given {
				return value, true
			}
		}
	}
	return "", false
}

// scanned returns a check that depends on the scan.
func scanned(scan func() (scan, error), look func(scan) finding) func(*Installation, context.Context, config.Configuration) (finding, error) {
	return func(*Installation, context.Context, config.Configuration) (finding, error) {
		s, err := scan()
		if err != nil {
			return finding{}, err
		}
		return look(s), nil
	}
}

// rbac checks the permissions of solepod's ServiceAccount by SubjectAccessReviews.
func (i *Installation) rbac(ctx context.Context, settings config.Configuration) (finding, error) {
	type rule struct{ group, resource, namespace, name, verbs string }
	rules := []rule{
		{"", "pods", "", "", "get list watch"},
		{"", "namespaces", "", "", "get list watch"},
		{"", "serviceaccounts", "", "", "get list watch"},
		{"events.k8s.io", "events", "", "", "create patch"},
		{"coordination.k8s.io", "leases", i.Namespace, "", "create get list watch update delete"},
	}
	// Some flags of the Deployment need more permissions.
	var d appsv1.Deployment
	if err := i.Client.Get(ctx, i.key(), &d); client.IgnoreNotFound(err) != nil {
		return finding{}, err
	}
	if _, reclaims := argument(&d, "--reclaim-older-than="); reclaims || settings.Retries == config.RetriesSupersede {
		rules = append(rules, rule{"", "pods", "", "", "patch delete"})
	}
	if _, authorizes := argument(&d, "--metrics-authorization"); authorizes {
		rules = append(rules, rule{"authentication.k8s.io", "tokenreviews", "", "", "create"},
			rule{"authorization.k8s.io", "subjectaccessreviews", "", "", "create"})
	}
	if secret, own := argument(&d, "--cert-secret="); own {
		const group = "admissionregistration.k8s.io"
		rules = append(rules, rule{"", "secrets", i.Namespace, secret, "get list watch update"},
			rule{group, "mutatingwebhookconfigurations", "", name, "get list watch patch"},
			rule{group, "validatingwebhookconfigurations", "", name, "get list watch patch"})
	}
	var missing []string
	reviews := 0
	for _, r := range rules {
		for verb := range strings.FieldsSeq(r.verbs) {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User:   serviceaccount.MakeUsername(i.Namespace, name),
				Groups: append(serviceaccount.MakeGroupNames(i.Namespace), "system:authenticated"),
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: r.namespace, Verb: verb, Group: r.group, Resource: r.resource, Name: r.name,
				},
			}}
			if err := i.Client.Create(ctx, review); err != nil {
				return finding{}, err
			}
			reviews++
			if !review.Status.Allowed {
				missing = append(missing, verb+" "+r.resource)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return failed("the ServiceAccount %s may not %s", i.key(), strings.Join(missing, ", ")), nil
	}
	return ok("%d permissions", reviews), nil
}
