package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Request is the name of a claim to reconcile.
type Request string

// Reconciler repairs claims: it adds pods that are in no claim, removes holders
// whose pods were deleted or that Airflow no longer finds, and deletes claims
// without holders. The package comment states when it may do so.
//
// It reads caches, and always the claim before the pods. A pod that is newer than
// the cached claim then leads to a conflict. In the other order, the pod of a new
// claim would seem to be missing.
type Reconciler struct {
	// Cache contains the claims.
	Cache interface {
		Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error
	}
	// Pods contains the task pods of the cluster.
	Pods      podindex.Index
	API       API
	Namespace string
	Settings  policy.Settings
	// Deleted reports whether the watch has reported the end of a pod.
	Deleted func(types.UID) bool
	// Identify and Discreet are those of Claimer.
	Identify func(ctx context.Context, username string) string
	Discreet bool
	Now      func() time.Time
	// Metrics may be nil.
	Metrics *Metrics
}

const (
	// adoptAfter is the delay from the event of a pod, or of a new claim, to its
	// reconciliation. The event of the claim, which is older than the pod, can arrive
	// later than that of the pod.
	adoptAfter = time.Second
	// retryAfter is the delay after a conflicting write.
	retryAfter = 100 * time.Millisecond

	// workers is the number of claims that are reconciled concurrently.
	workers = 4

	// maxBackoff is the maximum delay between two attempts to repair a claim. The
	// default of controller-runtime is 1,000 s: claims would be wrong for a quarter
	// of an hour after an outage of some minutes.
	maxBackoff = 30 * time.Second
)

// SetupWithManager runs the Reconciler in a term of the leader. It adds the pods whose
// end it observes to gone.
func (r *Reconciler) SetupWithManager(mgr manager.Manager, gone *DeletedPods) error {
	options := r.options()
	options.DefaultFromConfig(mgr.GetControllerOptions())
	c, err := controller.NewTypedUnmanaged("claims", options)
	if err != nil {
		return err
	}
	return errors.Join(
		mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
			defer r.Metrics.forget() // the next leader reports the claims
			return c.Start(ctx)
		})),
		c.Watch(source.TypedKind(mgr.GetCache(), metadata.Object("Pod"), podEvents(gone))),
		c.Watch(source.TypedKind(mgr.GetCache(), &coordinationv1.Lease{}, leaseEvents())),
	)
}

func (r *Reconciler) options() controller.TypedOptions[Request] {
	return controller.TypedOptions[Request]{
		Reconciler: r, MaxConcurrentReconciles: workers,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[Request](retryAfter, maxBackoff),
	}
}

// Reconcile implements reconcile.TypedReconciler.
func (r *Reconciler) Reconcile(ctx context.Context, req Request) (reconcile.Result, error) {
	wait, err := r.reconcile(ctx, req)
	if errors.Is(err, errContended) {
		wait, err = retryAfter, nil
	}
	return reconcile.Result{RequeueAfter: wait}, err
}

// reconcile repairs a claim. It returns the time until the next repair may be
// needed, or 0.
func (r *Reconciler) reconcile(ctx context.Context, req Request) (wait time.Duration, err error) {
	name := string(req)
	var lease coordinationv1.Lease
	err = r.Cache.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: name}, &lease)
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("reading claim %s: %w", name, err)
	}
	none := err != nil
	// After the claim: see Reconciler.
	pods, err := podindex.List(r.Pods, strings.TrimPrefix(name, prefix))
	if err != nil {
		return 0, err
	}
	pods = slices.DeleteFunc(pods, func(p taskpod.Pod) bool { return !p.Guarded() })
	slices.SortFunc(pods, func(a, b taskpod.Pod) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name)) })

	now := r.Now()
	var (
		holders []Holder
		intact  = true
	)
	if none {
		lease.Namespace, lease.Name = r.Namespace, name
	} else {
		holders, intact = read(&lease, now)
	}
	id, _ := identityOf(&lease)
	if len(pods) > 0 {
		id, _ = pods[0].Identity()
	}
	seen, err := r.observe(ctx, id, holders, pods, now)
	if err != nil {
		return 0, err
	}
	next, wait := repair(now, seen, pods, r.Settings.EnvironmentLabel)
	switch {
	case intact && slices.Equal(next, holders):
	case len(next) == 0:
		err = r.remove(ctx, &lease)
	default:
		if err := write(&lease, id, next, r.Settings.EnvironmentLabel, r.Discreet); err != nil {
			return 0, err
		}
		err = save(ctx, r.API, &lease)
	}
	if err == nil {
		r.Metrics.repaired(name, seen, next)
	}
	return wait, err
}

// observe finds the pods of holders in the cache. It reads those from the API
// server that are missing and not in flight, or whose end was reported.
func (r *Reconciler) observe(ctx context.Context, id taskpod.Identity, holders []Holder, pods []taskpod.Pod, now time.Time) ([]observation, error) {
	seen := make([]observation, 0, len(holders))
	for _, h := range holders {
		x := observation{Holder: h}
		if i := slices.IndexFunc(pods, func(p taskpod.Pod) bool { return p.UID == h.UID }); i >= 0 {
			x.found = &pods[i]
		} else if ended := r.Deleted(h.UID); ended || !h.inFlight(now) {
			var err error
			if x, err = lookUpPod(ctx, r.API, id, h, ended); err != nil {
				return nil, err
			}
		}
		if x.itself() && x.found.Checked() && !h.Declared {
			x.creator = creatorOf(ctx, r.Identify, h)
		}
		seen = append(seen, x)
	}
	return seen, nil
}

// remove deletes a claim, unless it has changed since it was read.
func (r *Reconciler) remove(ctx context.Context, lease *coordinationv1.Lease) error {
	err := r.API.Delete(ctx, lease, client.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion})
	if apierrors.IsConflict(err) {
		return errContended
	}
	return wrap("deleting", lease, client.IgnoreNotFound(err))
}
