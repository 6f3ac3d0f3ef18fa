// Package certs provides the serving certificates of the webhook: certificates that
// solepod issues and rotates without a lost review (Rotation), or files in a
// directory, such as a Secret of cert-manager (Files). Optionally, it admits API
// servers only (Clients).
package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Options of a rotation.
type Options struct {
	// Secret contains the certificates. It must exist, and may be empty.
	Secret types.NamespacedName
	// Service is the Service of the webhook, in the namespace of the Secret.
	Service string
	// Configurations is the name of the two webhook configurations whose caBundle the
	// rotation sets.
	Configurations string
	// Lifetime of a certificate; at least [minLifetime].
	Lifetime time.Duration
}

// minLifetime leaves a running leader enough time to issue a certificate, have it
// trusted and serve it. A killed leader is replaced after 17 seconds (LeaseDuration
// and RetryPeriod of client-go's leader election). A third of a lifetime of two
// minutes is sufficient for that.
const minLifetime = 30 * time.Second

// minBackoff and maxBackoff are the delays between two attempts to renew a
// certificate. The default maximum of controller-runtime is 1,000 s, in which a
// certificate can expire.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// Rotation issues and renews the serving certificates. The leader first adds a new
// CA to the webhook configurations. A few minutes later, when every API server has
// received the change, the replicas serve a certificate of that CA. So API servers
// always trust the certificate that is served. All replicas serve the certificate in
// the Secret, without a restart.
type Rotation struct {
	options Options
	plan    plan
	api     client.Client // uncached: with a stale Secret, it would issue another certificate
	now     func() time.Time
	serving atomic.Pointer[tls.Certificate]
}

// NewRotation returns a rotation. It serves no certificate before the manager runs.
func NewRotation(o Options) (*Rotation, error) {
	if o.Lifetime < minLifetime {
		return nil, fmt.Errorf("%s: want at least %s", o.Lifetime, minLifetime)
	}
	name := o.Service + "." + o.Secret.Namespace + ".svc"
	return &Rotation{options: o, plan: newPlan(name, o.Lifetime), now: time.Now}, nil
}

// Cache returns what the manager must cache for SetupWithManager: the Secret and the
// webhook configurations, and no other objects of their kinds.
func (r *Rotation) Cache() map[client.Object]cache.ByObject {
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector(metav1.ObjectNameField, name) }
	byObject := map[client.Object]cache.ByObject{
		&corev1.Secret{}: {Namespaces: map[string]cache.Config{r.options.Secret.Namespace: {FieldSelector: named(r.options.Secret.Name)}}},
	}
	for _, configuration := range r.configurations() {
		byObject[configuration] = cache.ByObject{Field: named(r.options.Configurations)}
	}
	return byObject
}

func (r *Rotation) configurations() []client.Object {
	meta := metav1.ObjectMeta{Name: r.options.Configurations}
	return []client.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta},
		&admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: meta},
	}
}

// SetupWithManager makes this replica serve the certificate in the Secret.
func (r *Rotation) SetupWithManager(ctx context.Context, mgr manager.Manager) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.Secret{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watching Secret %s: %w", r.options.Secret, err)
	}
	logger := mgr.GetLogger().WithName("certificates")
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { r.serve(logger, o.(*corev1.Secret)) },
		UpdateFunc: func(_, o any) { r.serve(logger, o.(*corev1.Secret)) },
	}); err != nil {
		return fmt.Errorf("watching Secret %s: %w", r.options.Secret, err)
	}
	return nil
}

// SetupLeader renews the certificate in a term of the leader.
func (r *Rotation) SetupLeader(mgr manager.Manager, api client.Client) error {
	r.api = api
	theSecret := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: r.options.Secret}}
	})
	renewal := builder.ControllerManagedBy(mgr).Named("certificates").For(&corev1.Secret{}).WithOptions(options())
	for _, configuration := range r.configurations() {
		renewal = renewal.Watches(configuration, theSecret)
	}
	return renewal.Complete(r)
}

func options() controller.Options {
	return controller.Options{
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff),
	}
}

// serve loads the certificate of the Secret. If the certificate is invalid, the
// previous one stays, and the leader repairs the Secret.
func (r *Rotation) serve(log logr.Logger, secret *corev1.Secret) {
	pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		log.Info("The Secret has no valid certificate", "secret", r.options.Secret, "reason", err.Error())
		return
	}
	before := r.serving.Swap(&pair)
	if before == nil || !before.Leaf.Equal(pair.Leaf) {
		log.Info("Serving a certificate", "serial", pair.Leaf.SerialNumber.Text(16), "notAfter", pair.Leaf.NotAfter)
	}
}

// GetCertificate implements the function of the same name in a [tls.Config].
func (r *Rotation) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if pair := r.serving.Load(); pair != nil {
		return pair, nil
	}
	return nil, fmt.Errorf("there is no certificate yet: Secret %s is missing or empty, and the leader fills it", r.options.Secret)
}

// Reconcile updates the webhook configurations and then the Secret: a CA must be
// trusted before a certificate of it is served.
func (r *Rotation) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var secret corev1.Secret
	if err := r.api.Get(ctx, r.options.Secret, &secret); apierrors.IsNotFound(err) {
		return reconcile.Result{}, fmt.Errorf("there is no Secret %s: install solepod again to create it: %w", r.options.Secret, err)
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading the certificates: %w", err)
	}
	had, err := read(&secret)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("in Secret %s: %w", r.options.Secret, err)
	}
	now := r.now()
	want, again, err := r.plan.next(had, now)
	if err != nil {
		return reconcile.Result{}, err
	}
	changed, err := r.trust(ctx, want.bundle())
	if err != nil {
		return reconcile.Result{}, err
	}
	if changed && want.next != nil {
		want.since, again = now, now.Add(r.plan.trustDelay)
	}

	was := secret.DeepCopy()
	want.write(&secret)
	if !reflect.DeepEqual(was, &secret) {
		if err := r.api.Update(ctx, &secret); apierrors.IsConflict(err) {
			return reconcile.Result{}, nil // the change causes an event
		} else if err != nil {
			return reconcile.Result{}, fmt.Errorf("writing the certificates: %w", err)
		}
		log.FromContext(ctx).Info("Wrote the certificates", "notAfter", want.current.leaf.NotAfter, "another", want.next != nil, "trusted", len(want.trusted))
	}
	return reconcile.Result{RequeueAfter: max(again.Sub(r.now()), time.Second)}, nil
}

// trust writes the caBundle of all hooks that are called through a Service. It
// reports whether one of them had another caBundle.
func (r *Rotation) trust(ctx context.Context, bundle []byte) (changed bool, err error) {
	for _, configuration := range r.configurations() {
		if err := r.api.Get(ctx, client.ObjectKeyFromObject(configuration), configuration); apierrors.IsNotFound(err) {
			continue // its creation causes an event
		} else if err != nil {
			return changed, fmt.Errorf("reading the webhook configurations: %w", err)
		}
		before := configuration.DeepCopyObject().(client.Object)
		differs := false
		for _, hook := range clientConfigs(configuration) {
			if hook.Service != nil && !bytes.Equal(hook.CABundle, bundle) {
				hook.CABundle, differs = bundle, true
			}
		}
		if !differs {
			continue
		}
		// A strategic merge by the names of the hooks keeps concurrent changes.
		if err := r.api.Patch(ctx, configuration, client.StrategicMergeFrom(before)); err != nil {
			return changed, fmt.Errorf("writing the caBundle of the webhook configurations: %w", err)
		}
		changed = true
	}
	return changed, nil
}

func clientConfigs(configuration client.Object) (out []*admissionregistrationv1.WebhookClientConfig) {
	switch c := configuration.(type) {
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		for i := range c.Webhooks {
			out = append(out, &c.Webhooks[i].ClientConfig)
		}
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		for i := range c.Webhooks {
			out = append(out, &c.Webhooks[i].ClientConfig)
		}
	}
	return out
}
