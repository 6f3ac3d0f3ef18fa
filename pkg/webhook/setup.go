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

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/environment"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Paths at which the hooks are served; the webhook configurations name them.
const (
	StampPath = "/stamp"
	GuardPath = "/guard"
)

// CacheOptions are what a manager must cache for Setup: the metadata of task
// pods, namespaces and ServiceAccounts, without the parts that nobody reads.
func CacheOptions() cache.Options {
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			environment.Object("Pod"): {Label: labels.SelectorFromSet(labels.Set{taskpod.LabelOperator: taskpod.True})},
		},
	}
}

// hook serves a handler, with what identifies a review on each of its log lines.
func hook(handler admission.Handler) http.Handler {
	return onlyV1(&admission.Webhook{
		Handler: handler,
		LogConstructor: func(base logr.Logger, req *admission.Request) logr.Logger {
			if req == nil {
				return base
			}
			return base.WithValues("operation", req.Operation, "namespace", req.Namespace, "name", req.Name,
				"user", req.UserInfo.Username, "uid", req.UID)
		},
	})
}

// Setup registers the hooks, the caches they read and the readiness checks
// with a manager that was made with CacheOptions. It returns a function that
// reports whether the caches are filled.
func Setup(ctx context.Context, mgr manager.Manager, cfg config.Configuration) (synced func() bool, err error) {
	for index, keys := range podIndexes() {
		if err := mgr.GetFieldIndexer().IndexField(ctx, environment.Object("Pod"), index, keys); err != nil {
			return nil, fmt.Errorf("indexing pods: %w", err)
		}
	}
	var informers []cache.Informer
	for _, kind := range []string{"Pod", "Namespace", "ServiceAccount"} {
		informer, err := mgr.GetCache().GetInformer(ctx, environment.Object(kind), cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("caching %s metadata: %w", kind, err)
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

	reviewer := reviewer{
		onError: cfg.OnError,
		synced:  synced,
		resolver: environment.Resolver{
			Label: cfg.EnvironmentLabel,
			Cache: mgr.GetCache(),
			Live:  mgr.GetAPIReader(),
		},
	}
	server := mgr.GetWebhookServer()
	server.Register(StampPath, hook(&Stamp{
		reviewer: reviewer, label: cfg.EnvironmentLabel, off: cfg.Injection == config.InjectionOff,
	}))
	server.Register(GuardPath, hook(&Guard{
		reviewer: reviewer, settings: cfg.Policy(), enforcement: cfg.Enforcement, now: time.Now,
		pods: podReader{cache: mgr.GetCache(), live: mgr.GetAPIReader()},
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
	)
}
