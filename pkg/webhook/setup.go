// Package webhook handles admission reviews. The hook stamp adds the environment
// label to task pods, guard denies new task pods that collide with others, and
// access denies access to the pods of other environments. All of them take the same
// steps: decode the review, resolve the requester, let package policy decide,
// respond.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/leader"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Paths of the hooks in the webhook configurations.
const (
	StampPath  = "/stamp"
	GuardPath  = "/guard"
	AccessPath = "/access"
	// DeclarePath is that of declare.solepod.io.
	DeclarePath = "/declare"
)

// CacheOptions returns the cache that a manager needs for Setup: the metadata of task
// pods, namespaces and ServiceAccounts, and the claims in solepod's namespace,
// without the parts that are not used. fresh observes them.
func CacheOptions(namespace, environmentLabel string, fresh *Freshness) cache.Options {
	known := &words{}
	return cache.Options{
		NewInformer:      fresh.informer,
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{namespace: {}}, Transform: slimClaims(known)},
			metadata.Object("Pod"): {
				Label:     labels.SelectorFromSet(labels.Set{taskpod.LabelOperator: taskpod.True}),
				Transform: slimPods(environmentLabel, known),
			},
		},
	}
}

// caches are the informers that decisions read.
type caches struct {
	index podindex.Index
	// deleted has the pods whose end the watch has reported.
	deleted   *claim.DeletedPods
	informers []cache.Informer
	fresh     *Freshness
}

func newCaches(ctx context.Context, from cache.Cache, fresh *Freshness) (*caches, error) {
	c := &caches{deleted: claim.NewDeletedPods(), fresh: fresh}
	for _, kind := range cachedKinds() {
		informer, err := from.GetInformer(ctx, metadata.Object(kind), cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("caching %s metadata: %w", kind, err)
		}
		if kind == "Pod" {
			if c.index, err = podindex.Add(informer); err != nil {
				return nil, fmt.Errorf("indexing pods: %w", err)
			}
			if err := c.deleted.Watch(informer); err != nil {
				return nil, fmt.Errorf("watching pods: %w", err)
			}
		}
		c.informers = append(c.informers, informer)
	}
	return c, nil
}

// synced reports whether all caches are filled.
func (c *caches) synced() bool {
	for _, informer := range c.informers {
		if !informer.HasSynced() {
			return false
		}
	}
	return true
}

// checkSynced returns an error of status 503 until the caches are filled.
func (c *caches) checkSynced() error {
	if !c.synced() {
		return errNotSynced
	}
	return nil
}

// usable returns an error of status 503 while decisions cannot rest on the
// caches: they are still filling, or may be stale.
func (c *caches) usable() error {
	if err := c.checkSynced(); err != nil {
		return err
	}
	return c.fresh.check()
}

// Setup registers the hooks, the caches that they read and the readiness checks with a
// manager, which was made with CacheOptions and fresh. It adds the Reconciler of the
// claims to the work of the leader. api is an uncached client. After ctx ends, the hooks close the
// connections of API servers; the manager may run for longer.
func Setup(ctx context.Context, mgr manager.Manager, lead *leader.Leader, api client.Client, namespace string, cfg config.Configuration, fresh *Freshness) error {
	caches, err := newCaches(ctx, mgr.GetCache(), fresh)
	if err != nil {
		return err
	}
	counters, claimMetrics := newCounters(), claim.NewMetrics()
	if err := errors.Join(counters.register(metrics.Registry), metrics.Registry.Register(claimMetrics), metrics.Registry.Register(fresh)); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	resolver := environment.Resolver{
		Label:        cfg.EnvironmentLabel,
		Environments: cfg.Environments,
		Objects:      metadata.Reader{Cache: mgr.GetCache(), Live: api},
	}
	identified := func(ctx context.Context, username string) string { return identify(ctx, resolver, username) }
	discreet := cfg.Disclosure == config.DisclosureDiscreet
	reconciler := &claim.Reconciler{
		Cache: mgr.GetCache(), Pods: caches.index, API: api, Namespace: namespace, Settings: cfg.Policy(),
		Deleted: caches.deleted.Has, Identify: identified, Now: time.Now, Discreet: discreet, Metrics: claimMetrics,
	}
	lead.Add(func(term manager.Manager) error { return reconciler.SetupWithManager(term, caches.deleted) })
	claimer := &claim.Claimer{
		API: api, Namespace: namespace, Settings: cfg.Policy(),
		Deleted: caches.deleted.Has, Identify: identified, Patience: cfg.Claims.Patience.Duration, Discreet: discreet, Metrics: claimMetrics,
	}
	registerHooks(ctx, mgr, api, cfg, resolver, caches, claimer, counters)
	return addHealth(mgr, caches)
}

// identify returns the environment of a user by its name alone, or "".
func identify(ctx context.Context, resolver environment.Resolver, username string) string {
	user := authenticationv1.UserInfo{Username: username}
	if namespace, _, err := serviceaccount.SplitUsername(username); err == nil {
		user.Groups = serviceaccount.MakeGroupNames(namespace)
	}
	// Without an answer, the labels of the pods decide.
	own, err := resolver.Identify(ctx, user)
	if err != nil {
		ctrllog.FromContext(ctx).V(1).Info("The environment of a creator is not known", "creator", username, "error", err.Error())
		return ""
	}
	return own
}

func registerHooks(ctx context.Context, mgr manager.Manager, api client.Client, cfg config.Configuration, resolver environment.Resolver, caches *caches, claimer claimer, counters *counters) {
	reviewer := reviewer{
		counters:     counters,
		onError:      cfg.OnError,
		discreet:     cfg.Disclosure == config.DisclosureDiscreet,
		cachesUsable: caches.usable,
		resolver:     resolver,
	}
	enforcer := enforcer{
		enforcement: cfg.Enforcement, label: cfg.EnvironmentLabel, events: mgr.GetEventRecorder("solepod"), counters: counters,
	}
	pods := podReader{index: caches.index, cache: mgr.GetCache(), live: api}
	accessReviewer, accessEnforcer := reviewer, enforcer
	accessReviewer.onError, accessEnforcer.enforcement = config.OnErrorAllow, cfg.AccessEnforcement()

	// The hooks share the memory for large reviews.
	large := semaphore.NewWeighted(largeAtOnce)
	for path, handler := range map[string]admission.Handler{
		StampPath: &stamp{reviewer: reviewer, label: cfg.EnvironmentLabel, off: cfg.Injection == config.InjectionOff},
		GuardPath: &guard{
			reviewer: reviewer, enforcer: enforcer, settings: cfg.Policy(), pods: pods, claims: claimer, superseder: api, now: time.Now,
		},
		DeclarePath: &declarer{reviewer: reviewer, label: cfg.EnvironmentLabel, events: enforcer.events, pods: counters.declared},
		AccessPath: &access{
			reviewer: accessReviewer, enforcer: accessEnforcer, settings: cfg.Policy(), pods: pods, claims: claimer,
			off: cfg.ForeignAccess == config.ForeignAccessOff, now: time.Now,
		},
	} {
		mgr.GetWebhookServer().Register(path, chain(ctx, large, handler))
	}
}

func addHealth(mgr manager.Manager, caches *caches) error {
	return errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("webhook-server", mgr.GetWebhookServer().StartedChecker()),
		mgr.AddReadyzCheck("caches", func(*http.Request) error { return caches.checkSynced() }),
		mgr.AddReadyzCheck("fresh", caches.fresh.readyz),
	)
}
