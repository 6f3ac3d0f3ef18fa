// Package webhook answers the API server's admission reviews: Stamp adds the
// environment label to task pods, Guard denies those that Airflow could not
// tell from another. Both follow one path: decode the review, find out who is
// asking, let package policy decide, respond.
package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Paths at which the hooks are served; the webhook configurations name them.
const (
	StampPath  = "/stamp"
	GuardPath  = "/guard"
	AccessPath = "/access"
)

// CacheOptions are what a manager must cache for Setup: the metadata of task
// pods, namespaces and ServiceAccounts, and the claims in solepod's own
// namespace, without the parts that nobody reads. fresh hears of them.
func CacheOptions(namespace, environmentLabel string, fresh *Freshness) cache.Options {
	return cache.Options{
		NewInformer:      fresh.informer,
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{namespace: {}}, Transform: slimClaims},
			metadata.Object("Pod"): {
				Label:     labels.SelectorFromSet(labels.Set{taskpod.LabelOperator: taskpod.True}),
				Transform: slimPods(environmentLabel),
			},
		},
	}
}

// hook serves a handler until ctx ends, with what identifies a review on each of
// its log lines. Hooks that share memory share large.
func hook(ctx context.Context, large *semaphore.Weighted, handler admission.Handler) http.Handler {
	return withGoodbye(ctx, withDeadline(withTurns(large, reviews(&admission.Webhook{Handler: handler, LogConstructor: logOf}))))
}

// withGoodbye closes connections after an answer, once ctx has ended. A server
// that is stopped closes those that are idle, perhaps just when a review is on
// its way on one of them, which then is lost.
func withGoodbye(ctx context.Context, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ctx.Err() != nil {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// withDeadline gives a review nine tenths of the time for which its sender
// says, in the URL, that it waits. The rest is for the answer to travel. Only
// the deadline ends it: the server's own context ends with SIGTERM, on which
// running admissions are to be finished.
func withDeadline(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		timeout, err := time.ParseDuration(r.URL.Query().Get("timeout"))
		if err != nil || timeout <= 0 || timeout > maxTimeout {
			timeout = maxTimeout
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout*9/10)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// maxTimeout is the longest that an API server waits for a webhook.
const maxTimeout = 30 * time.Second

// Setup registers the hooks, the caches they read, the claims' reconciler and
// the readiness checks with a manager that was made with CacheOptions and fresh.
// The manager may outlive ctx, after which API servers are asked to go elsewhere.
// It returns a function that reports whether the caches are filled.
func Setup(ctx context.Context, mgr manager.Manager, namespace string, cfg config.Configuration, fresh *Freshness) (synced func() bool, err error) {
	gone := claim.NewGone()
	var known podindex.Index
	var informers []cache.Informer
	for _, kind := range cachedKinds() {
		informer, err := mgr.GetCache().GetInformer(ctx, metadata.Object(kind), cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("caching %s metadata: %w", kind, err)
		}
		if kind == "Pod" {
			if known, err = podindex.Add(informer); err != nil {
				return nil, fmt.Errorf("indexing pods: %w", err)
			}
			if err := gone.Watch(informer); err != nil {
				return nil, fmt.Errorf("watching pods: %w", err)
			}
		}
		informers = append(informers, informer)
	}
	synced = func() bool {
		for _, informer := range informers {
			if !informer.HasSynced() {
				return false
			}
		}
		return true
	}

	// Uncached, and on the connections that the manager has.
	api, err := client.New(mgr.GetConfig(), client.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
	})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	counters, claimMetrics := newCounters(), claim.NewMetrics()
	if err := errors.Join(counters.register(metrics.Registry), metrics.Registry.Register(claimMetrics), metrics.Registry.Register(fresh)); err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	reconciler := &claim.Reconciler{
		Cache: mgr.GetCache(), Pods: known, API: api, Namespace: namespace, Settings: cfg.Policy(), Gone: gone.Has, Now: time.Now, Metrics: claimMetrics,
	}
	if err := reconciler.SetupWithManager(mgr, gone); err != nil {
		return nil, fmt.Errorf("setting up the claims' reconciler: %w", err)
	}

	reviewer := reviewer{
		counters: counters,
		onError:  cfg.OnError,
		discreet: cfg.Disclosure == config.DisclosureDiscreet,
		fit: func() error {
			if !synced() {
				return errNotSynced
			}
			return fresh.check()
		},
		resolver: environment.Resolver{
			Label:        cfg.EnvironmentLabel,
			Environments: cfg.Environments,
			Objects:      metadata.Reader{Cache: mgr.GetCache(), Live: api},
		},
	}
	recorder := mgr.GetEventRecorder("solepod")
	server, large := mgr.GetWebhookServer(), semaphore.NewWeighted(largeAtOnce)
	server.Register(StampPath, hook(ctx, large, &Stamp{
		reviewer: reviewer, label: cfg.EnvironmentLabel, off: cfg.Injection == config.InjectionOff,
	}))
	pods := podReader{known: known, cache: mgr.GetCache(), live: api}
	server.Register(GuardPath, hook(ctx, large, &Guard{
		reviewer: reviewer, enforcer: enforcer{cfg.Enforcement, cfg.EnvironmentLabel, recorder, counters}, settings: cfg.Policy(), pods: pods, now: time.Now,
		claims:     &claim.Claims{API: api, Namespace: namespace, Settings: cfg.Policy(), Gone: gone.Has, Patience: cfg.Claims.Patience.Duration, Metrics: claimMetrics},
		superseder: api,
	}))
	failOpen := reviewer
	failOpen.onError = config.OnErrorAllow
	server.Register(AccessPath, hook(ctx, large, &Access{
		reviewer: failOpen, enforcer: enforcer{cfg.AccessEnforcement(), cfg.EnvironmentLabel, recorder, counters}, settings: cfg.Policy(),
		off: cfg.ForeignAccess == config.ForeignAccessOff, pods: pods, now: time.Now,
	}))

	return synced, errors.Join(
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("webhook-server", server.StartedChecker()),
		mgr.AddReadyzCheck("caches", func(*http.Request) error {
			if !synced() {
				return errNotSynced
			}
			return nil
		}),
		mgr.AddReadyzCheck("fresh", fresh.readyz),
	)
}
