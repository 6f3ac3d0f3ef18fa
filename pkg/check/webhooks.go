package check

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/manifests"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/taskpod"
)

// hook is a mutating or validating hook.
type hook struct {
	name          string
	client        *admissionregistrationv1.WebhookClientConfig
	failurePolicy *admissionregistrationv1.FailurePolicyType
	namespaces    *metav1.LabelSelector
	// fields are those that do not depend on the values of an installation.
	fields map[string]any
}

// hooksOf returns the hooks of both configurations by name.
func hooksOf(mutating *admissionregistrationv1.MutatingWebhookConfiguration, validating *admissionregistrationv1.ValidatingWebhookConfiguration) (map[string]hook, error) {
	hooks := map[string]hook{}
	add := func(object any, h hook) (err error) {
		if h.fields, err = runtime.DefaultUnstructuredConverter.ToUnstructured(object); err != nil {
			return err
		}
		for _, own := range []string{"failurePolicy", "timeoutSeconds", "namespaceSelector"} {
			delete(h.fields, own)
		}
		if service := h.client.Service; service != nil {
			path := ""
			if service.Path != nil {
				path = *service.Path
			}
			h.fields["clientConfig"] = service.Namespace + "/" + service.Name + path
		}
		if selector, there := h.fields["objectSelector"].(map[string]any); there && len(selector) == 0 {
			delete(h.fields, "objectSelector") // the default
		}
		hooks[h.name] = h
		return nil
	}
	for i := range mutating.Webhooks {
		w := &mutating.Webhooks[i]
		if err := add(w, hook{name: w.Name, client: &w.ClientConfig, failurePolicy: w.FailurePolicy, namespaces: w.NamespaceSelector}); err != nil {
			return nil, err
		}
	}
	for i := range validating.Webhooks {
		w := &validating.Webhooks[i]
		if err := add(w, hook{name: w.Name, client: &w.ClientConfig, failurePolicy: w.FailurePolicy, namespaces: w.NamespaceSelector}); err != nil {
			return nil, err
		}
	}
	return hooks, nil
}

// shipped returns the hooks that this version installs in a namespace, with an
// environment label.
func shipped(namespace, label string) (map[string]hook, error) {
	text := strings.NewReplacer(manifests.Namespace, namespace, taskpod.DefaultEnvironmentLabel, label).Replace(string(manifests.Install))
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	for decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		var raw runtime.RawExtension
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var into any
		switch {
		case bytes.Contains(raw.Raw, []byte(`"kind":"MutatingWebhookConfiguration"`)):
			into = &mutating
		case bytes.Contains(raw.Raw, []byte(`"kind":"ValidatingWebhookConfiguration"`)):
			into = &validating
		default:
			continue
		}
		if err := yaml.Unmarshal(raw.Raw, into); err != nil {
			return nil, err
		}
	}
	return hooksOf(&mutating, &validating)
}

// installed returns the hooks in the cluster.
func (i *Installation) installed(ctx context.Context) (hooks map[string]hook, missing []string, err error) {
	var mutating admissionregistrationv1.MutatingWebhookConfiguration
	var validating admissionregistrationv1.ValidatingWebhookConfiguration
	for kind, object := range map[string]client.Object{"MutatingWebhookConfiguration": &mutating, "ValidatingWebhookConfiguration": &validating} {
		if err := i.Client.Get(ctx, client.ObjectKey{Name: name}, object); apierrors.IsNotFound(err) {
			missing = append(missing, kind)
		} else if err != nil {
			return nil, nil, err
		}
	}
	slices.Sort(missing)
	hooks, err = hooksOf(&mutating, &validating)
	return hooks, missing, err
}

func (i *Installation) webhooks(ctx context.Context, settings config.Configuration) (finding, error) {
	got, missing, err := i.installed(ctx)
	if err != nil {
		return finding{}, err
	}
	if len(missing) > 0 {
		return failed("there is no %s %s", strings.Join(missing, " and no "), name), nil
	}
	want, err := shipped(i.Namespace, settings.EnvironmentLabel)
	if err != nil {
		return finding{}, err
	}
	var problems []string
	for _, hook := range slices.Sorted(maps.Keys(want)) {
		is, there := got[hook]
		if !there {
			if !slices.Contains(idle(settings), hook) {
				problems = append(problems, hook+" is missing")
			}
			continue
		}
		for _, field := range slices.Sorted(maps.Keys(want[hook].fields)) {
			if !reflect.DeepEqual(want[hook].fields[field], is.fields[field]) {
				problems = append(problems, hook+": unexpected "+field)
			}
		}
		for _, field := range slices.Sorted(maps.Keys(is.fields)) {
			if _, known := want[hook].fields[field]; !known {
				problems = append(problems, hook+" has "+field)
			}
		}
		if !excludes(is.namespaces, i.Namespace) {
			problems = append(problems, hook+" does not exclude namespace "+i.Namespace+": solepod may wait for itself")
		}
	}
	for _, hook := range slices.Sorted(maps.Keys(got)) {
		if _, known := want[hook]; !known {
			problems = append(problems, hook+" is not a hook of solepod")
		}
	}
	if len(problems) > 0 {
		return failed("%s", strings.Join(problems, "; ")), nil
	}
	return ok("%s", strings.Join(slices.Sorted(maps.Keys(got)), ", ")), nil
}

// idle returns the hooks that do nothing with a configuration. The chart does not
// register them, and install.yaml does.
func idle(settings config.Configuration) (hooks []string) {
	if settings.Injection == config.InjectionOff {
		hooks = append(hooks, installation.StampHook, installation.OwnerHook)
	}
	if settings.ForeignAccess == config.ForeignAccessOff {
		hooks = append(hooks, installation.AccessHook, installation.ConnectHook)
	}
	return hooks
}

func excludes(selector *metav1.LabelSelector, namespace string) bool {
	return selector != nil && slices.ContainsFunc(selector.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
		return r.Key == corev1.LabelMetadataName && r.Operator == metav1.LabelSelectorOpNotIn && slices.Contains(r.Values, namespace)
	})
}

func (i *Installation) failurePolicy(ctx context.Context) (finding, error) {
	got, _, err := i.installed(ctx)
	if err != nil {
		return finding{}, err
	}
	var open []string
	for _, name := range []string{installation.GuardHook, installation.StampHook} {
		h, there := got[name]
		if !there {
			settings, _, err := i.settings(ctx) // without valid ones, no hook is idle
			if err != nil {
				return finding{}, err
			}
			if slices.Contains(idle(settings), name) {
				continue
			}
			return skipped("there is no webhook %s", name), nil
		}
		if h.failurePolicy != nil && *h.failurePolicy == admissionregistrationv1.Ignore {
			open = append(open, name)
		}
	}
	if len(open) > 0 {
		return warning("failurePolicy of %s is Ignore", strings.Join(open, " and ")), nil
	}
	return ok("failurePolicy Fail"), nil
}

func (i *Installation) endpoints(ctx context.Context) (finding, error) {
	var slices discoveryv1.EndpointSliceList
	if err := i.Client.List(ctx, &slices, client.InNamespace(i.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: name}); err != nil {
		return finding{}, err
	}
	ready, all := 0, 0
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			all++
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				ready++
			}
		}
	}
	if ready == 0 {
		return failed("%d of %d are ready", ready, all), nil
	}
	return ok("%d", ready), nil
}

// chain returns the serving certificate and the certificates after it in the Secret.
func (i *Installation) chain(ctx context.Context) (secret string, chain []*x509.Certificate, found *finding, err error) {
	fail := func(f finding) (string, []*x509.Certificate, *finding, error) { return secret, nil, &f, nil }
	secret, _, err = i.secret(ctx)
	if err != nil {
		return fail(skipped("%v", err))
	}
	var s corev1.Secret
	if err := i.Client.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: secret}, &s); apierrors.IsNotFound(err) {
		return fail(failed("there is no Secret %s/%s", i.Namespace, secret))
	} else if err != nil {
		return secret, nil, nil, err
	}
	chain, parseErr := cert.ParseCertsPEM(s.Data[corev1.TLSCertKey])
	if parseErr != nil {
		return fail(failed("tls.crt of Secret %s/%s: %v", i.Namespace, secret, parseErr))
	}
	return secret, chain, nil, nil
}

func (i *Installation) certificate(ctx context.Context) (finding, error) {
	secret, chain, found, err := i.chain(ctx)
	if err != nil || found != nil {
		return deref(found), err
	}
	leaf, now := chain[0], i.Now()
	date := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch left := leaf.NotAfter.Sub(now); {
	case left <= 0:
		return failed("the certificate in Secret %s expired at %s", secret, date(leaf.NotAfter)), nil
	case now.Before(leaf.NotBefore):
		return failed("the certificate in Secret %s is valid from %s", secret, date(leaf.NotBefore)), nil
	case left < leaf.NotAfter.Sub(leaf.NotBefore)/4:
		return warning("the certificate in Secret %s expires at %s, and was not renewed in time", secret, date(leaf.NotAfter)), nil
	}
	return ok("until %s", date(leaf.NotAfter)), nil
}

func deref(f *finding) finding {
	if f == nil {
		return finding{}
	}
	return *f
}

func (i *Installation) caBundle(ctx context.Context) (finding, error) {
	_, chain, found, err := i.chain(ctx)
	if err != nil || found != nil {
		return deref(found), err
	}
	hooks, missing, err := i.installed(ctx)
	if err != nil {
		return finding{}, err
	}
	if len(missing) > 0 {
		return skipped("there is no %s", strings.Join(missing, " and no ")), nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	host := fmt.Sprintf("%s.%s.svc", name, i.Namespace)
	var problems []string
	for _, hook := range slices.Sorted(maps.Keys(hooks)) {
		bundle := hooks[hook].client.CABundle
		roots := x509.NewCertPool()
		if len(bundle) == 0 {
			problems = append(problems, hook+" has no caBundle")
			continue
		}
		roots.AppendCertsFromPEM(bundle)
		// Expiry is another check.
		_, err := chain[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: intermediates, CurrentTime: chain[0].NotAfter})
		if err != nil {
			problems = append(problems, hook+": "+err.Error())
		}
	}
	if len(problems) > 0 {
		return failed("%s", strings.Join(problems, "; ")), nil
	}
	return ok("for %s", host), nil
}

func (i *Installation) certManager(ctx context.Context) (finding, error) {
	var c cmapi.Certificate
	err := i.Client.Get(ctx, i.key(), &c)
	switch {
	case meta.IsNoMatchError(err):
		return skipped("cert-manager is not installed"), nil
	case apierrors.IsNotFound(err):
		return skipped("cert-manager does not issue the certificate"), nil
	case err != nil:
		return finding{}, err
	}
	for _, condition := range c.Status.Conditions {
		if condition.Type != cmapi.CertificateConditionReady {
			continue
		}
		if condition.Status != cmmeta.ConditionTrue {
			return failed("Certificate %s is not ready: %s", i.key(), condition.Message), nil
		}
		return ok("Certificate %s", i.key()), nil
	}
	return failed("cert-manager has not processed Certificate %s", i.key()), nil
}
