// Package leader runs work on one replica at a time: the leader. The manager of
// controller-runtime does that, too, but it stops when it loses the lead, at once and
// with the webhooks. A leader loses the lead when the API server is slow, which is
// when many reviews are in progress. Here, only the work stops, and the replica seeks
// the lead again.
package leader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	ctrlleader "sigs.k8s.io/controller-runtime/pkg/leaderelection"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// The times of the election are the defaults of controller-runtime.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Work sets up the work of one term: what it adds to the manager runs until the term
// ends. A replica can lead for several terms, so Work is called several times.
type Work func(term manager.Manager) error

// Leader does work while this replica is the leader. It implements manager.Runnable.
type Leader struct {
	mgr  manager.Manager
	name string
	lock resourcelock.Interface // nil if this is the only replica
	work []Work
}

// Options of a Leader.
type Options struct {
	// Elect is false for the only replica, which always leads.
	Elect bool
	// Namespace and Name of the Lease.
	Namespace, Name string
}

// New adds a Leader to a manager. The manager itself must not elect a leader.
func New(mgr manager.Manager, o Options) (*Leader, error) {
	lock, err := ctrlleader.NewResourceLock(mgr.GetConfig(), mgr, ctrlleader.Options{
		LeaderElection: o.Elect, LeaderElectionNamespace: o.Namespace, LeaderElectionID: o.Name, RenewDeadline: renewDeadline,
	})
	if err != nil {
		return nil, fmt.Errorf("making the lock of the leader: %w", err)
	}
	l := &Leader{mgr: mgr, name: o.Name, lock: lock}
	return l, mgr.Add(l)
}

// Add adds work. It must not be called after the manager has started.
func (l *Leader) Add(work Work) { l.work = append(l.work, work) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (l *Leader) NeedLeaderElection() bool { return false }

// Start leads as often as it can until ctx ends.
func (l *Leader) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := l.term(ctx); err != nil {
			l.mgr.GetLogger().Error(err, "The work of the leader failed, and starts again")
			select {
			case <-time.After(retryPeriod):
			case <-ctx.Done():
			}
		} else if ctx.Err() == nil {
			l.mgr.GetLogger().Info("Lost the lead, and seeking it again")
		}
	}
	return nil
}

// term waits until this replica leads, and works until it no longer does, or ctx
// ends, or the work fails. The Lease is released after the work has stopped.
func (l *Leader) term(ctx context.Context) error {
	if l.lock == nil {
		return l.lead(ctx)
	}
	lease, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	started := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: l.lock, Name: l.name,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) { started <- leading },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	released := make(chan struct{})
	go func() {
		defer close(released)
		elector.Run(lease)
	}()
	select {
	case leading := <-started:
		both, stop := context.WithCancel(ctx)
		context.AfterFunc(leading, stop)
		err = l.lead(both)
		stop()
	case <-ctx.Done():
	}
	release()
	<-released
	return err
}

// lead works until ctx ends, or a part of the work ends, which is an error.
func (l *Leader) lead(ctx context.Context) error {
	working, stop := context.WithCancel(ctx)
	defer stop()
	t := &term{Manager: l.mgr}
	defer func() {
		if err := t.handlers.remove(); err != nil {
			l.mgr.GetLogger().Error(err, "Cannot remove the event handlers of the leader")
		}
	}()
	for _, work := range l.work {
		if err := work(t); err != nil {
			return err
		}
	}
	var (
		all  sync.WaitGroup
		errs = make([]error, len(t.parts))
	)
	for i, part := range t.parts {
		all.Go(func() {
			defer stop()
			errs[i] = part.Start(working)
			if errs[i] == nil && working.Err() == nil {
				errs[i] = fmt.Errorf("%T ended", part)
			}
		})
	}
	<-working.Done() // also without work
	all.Wait()
	if ctx.Err() != nil {
		return nil // the parts were interrupted, which is no failure
	}
	return errors.Join(errs...)
}

// term is the manager that work is added to. Its parts run for one term.
type term struct {
	manager.Manager
	parts    []manager.Runnable
	handlers handlers
}

// Add implements manager.Manager.
func (t *term) Add(part manager.Runnable) error {
	t.parts = append(t.parts, part)
	return nil
}

// GetControllerOptions implements manager.Manager. The controllers of each term have
// the same names.
func (t *term) GetControllerOptions() config.Controller {
	options := t.Manager.GetControllerOptions()
	options.SkipNameValidation = ptr.To(true)
	return options
}

// GetCache implements manager.Manager.
func (t *term) GetCache() cache.Cache { return termCache{t.Manager.GetCache(), &t.handlers} }

// handlers are the event handlers that were added in a term. A controller does not
// remove its own: each term would leave one in the cache, with its queue.
type handlers struct {
	mu    sync.Mutex
	undo  []func() error
	ended bool
}

func (h *handlers) add(undo func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended { // a controller that was still waiting for its informer
		return undo()
	}
	h.undo = append(h.undo, undo)
	return nil
}

func (h *handlers) remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	var errs []error
	for _, undo := range h.undo {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// termCache is a cache that records the handlers added to its informers.
type termCache struct {
	cache.Cache
	handlers *handlers
}

// GetInformer implements cache.Cache.
func (c termCache) GetInformer(ctx context.Context, object client.Object, options ...cache.InformerGetOption) (cache.Informer, error) {
	informer, err := c.Cache.GetInformer(ctx, object, options...)
	if err != nil {
		return nil, err
	}
	return termInformer{informer, c.handlers}, nil
}

type termInformer struct {
	cache.Informer
	handlers *handlers
}

// AddEventHandlerWithOptions implements cache.Informer. It is the method that the
// sources of controllers call.
func (i termInformer) AddEventHandlerWithOptions(handler toolscache.ResourceEventHandler, options toolscache.HandlerOptions) (toolscache.ResourceEventHandlerRegistration, error) {
	registration, err := i.Informer.AddEventHandlerWithOptions(handler, options)
	if err != nil {
		return nil, err
	}
	return registration, i.handlers.add(func() error { return i.RemoveEventHandler(registration) })
}
