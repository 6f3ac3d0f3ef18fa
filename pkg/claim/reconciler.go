package claim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Gone remembers pods whose watch has told of their end, for as long as a claim
// could take them for in flight. Every replica has one, so that a task whose pod
// was deleted need not wait for the leader. Such a pod may live on without the
// label that the watch selects by: only the API server knows.
type Gone struct{ uids *utilcache.Expiring }

// NewGone returns an empty Gone.
func NewGone() *Gone { return &Gone{utilcache.NewExpiring()} }

// Has reports whether a pod has been seen, and its watch has told of its end.
func (g *Gone) Has(uid types.UID) bool {
	_, ok := g.uids.Get(uid)
	return ok
}

func (g *Gone) add(uid types.UID) { g.uids.Set(uid, nil, 2*InFlight) }

// Watch learns from an informer on pods.
func (g *Gone) Watch(pods cache.Informer) error {
	_, err := pods.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			// A watch that was interrupted tells of a deletion and a creation
			// under the same name as of one update.
			if before, after := before.(client.Object), after.(client.Object); before.GetUID() != after.GetUID() {
				g.add(before.GetUID())
			}
		},
		DeleteFunc: func(object any) {
			if last, missed := object.(toolscache.DeletedFinalStateUnknown); missed {
				object = last.Obj
			}
			// The last state may be unknown altogether.
			if pod, known := object.(client.Object); known {
				g.add(pod.GetUID())
			}
		},
	})
	return err
}

// Request asks the Reconciler to look at the claim of this name.
type Request string

// Reconciler makes claims say what is true: it adopts pods that are in no
// claim, drops holders whose pods are gone or no longer found by Airflow, and
// deletes claims without holders. The package comment says what it may do.
//
// It works from caches, of which it always reads the claim before the pods: of
// a pod that is newer than its view of the claim it learns by a conflict, and
// not the other way round, where it would take a new claim's pod for missing.
type Reconciler struct {
	// Cache has Leases of the claims' namespace.
	Cache interface {
		Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error
	}
	// Pods are those that are known, all over the cluster.
	Pods      podindex.Index
	API       API
	Namespace string
	Settings  policy.Settings
	// Gone reports whether a pod has been seen, and its watch has told of its end.
	Gone func(types.UID) bool
	Now  func() time.Time
	// Metrics may be nil.
	Metrics *Metrics
}

const (
	// adoptAfter is how long after a pod its claim is looked for, and after a claim
	// its pod. The watch of the claims needs a moment to tell of what was there
	// before the pod.
	adoptAfter = time.Second
	// retryAfter is when a claim is looked at again that somebody else was
	// writing.
	retryAfter = 100 * time.Millisecond

	// workers is how many claims are written at once.
	workers = 4
)

// SetupWithManager runs the Reconciler in a manager, on the leader. What it sees
// go is added to gone.
func (r *Reconciler) SetupWithManager(mgr manager.Manager, gone *Gone) error {
	c, err := controller.NewTyped("claims", mgr, controller.TypedOptions[Request]{
		Reconciler: r, MaxConcurrentReconciles: workers,
	})
	if err != nil {
		return err
	}
	return errors.Join(
		c.Watch(source.TypedKind(mgr.GetCache(), metadata.Object("Pod"), podEvents(gone))),
		c.Watch(source.TypedKind(mgr.GetCache(), &coordinationv1.Lease{}, leaseEvents())),
	)
}

type (
	podEvent   = *metav1.PartialObjectMetadata
	leaseEvent = *coordinationv1.Lease
	queue      = workqueue.TypedRateLimitingInterface[Request]
)

// podEvents turns what happens to pods into requests, and adds those that go
// to gone: whoever handles the request must know already.
func podEvents(gone *Gone) handler.TypedEventHandler[podEvent, Request] {
	return handler.TypedFuncs[podEvent, Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[podEvent], q queue) {
			if claim := claimOfPod(e.Object); claim != "" {
				q.AddAfter(claim, adoptAfter)
			}
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[podEvent], q queue) {
			replaced := e.ObjectOld.UID != e.ObjectNew.UID // see Gone.Watch
			if replaced {
				gone.add(e.ObjectOld.UID)
			}
			if !replaced && maps.Equal(e.ObjectOld.Labels, e.ObjectNew.Labels) {
				return
			}
			for _, claim := range []Request{claimOfPod(e.ObjectOld), claimOfPod(e.ObjectNew)} {
				if claim != "" {
					q.Add(claim)
				}
			}
		},
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[podEvent], q queue) {
			gone.add(e.Object.UID)
			if claim := claimOfPod(e.Object); claim != "" {
				q.Add(claim)
			}
		},
	}
}

func claimOfPod(object podEvent) Request {
	pod := taskpod.FromMeta(object, "")
	if !pod.Guarded() {
		return ""
	}
	id, _ := pod.Identity()
	return Request(Name(id))
}

// leaseEvents turns what happens to claims into requests. A new claim is looked at
// together with its pod, which comes after it: once, and not while the pod is
// being created.
func leaseEvents() handler.TypedEventHandler[leaseEvent, Request] {
	look := func(lease leaseEvent, q queue, after time.Duration) {
		if strings.HasPrefix(lease.Name, prefix) { // others are such as the one of the leader election
			q.AddAfter(Request(lease.Name), after)
		}
	}
	return handler.TypedFuncs[leaseEvent, Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[leaseEvent], q queue) { look(e.Object, q, adoptAfter) },
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[leaseEvent], q queue) { look(e.ObjectNew, q, 0) },
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[leaseEvent], q queue) { look(e.Object, q, 0) },
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

// reconcile repairs a claim, and returns when it may need the next repair.
func (r *Reconciler) reconcile(ctx context.Context, req Request) (wait time.Duration, err error) {
	name := string(req)
	var lease coordinationv1.Lease
	err = r.Cache.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: name}, &lease)
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("reading claim %s: %w", name, err)
	}
	none := err != nil
	// Before the pods, see above.
	pods, err := podindex.List(r.Pods, strings.TrimPrefix(name, prefix))
	if err != nil {
		return 0, err
	}
	pods = slices.DeleteFunc(pods, func(p taskpod.Pod) bool { return !p.Guarded() })

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
	seen, err := r.sight(ctx, id, holders, pods, now)
	if err != nil {
		return 0, err
	}
	next, wait := repair(now, seen, pods, r.Settings.EnvironmentLabel)
	switch {
	case intact && slices.Equal(next, holders):
	case len(next) == 0:
		err = r.remove(ctx, &lease)
	default:
		if err := write(&lease, id, next, r.Settings.EnvironmentLabel); err != nil {
			return 0, err
		}
		err = save(ctx, r.API, &lease)
	}
	if err == nil {
		r.Metrics.repaired(name, seen, next)
	}
	return wait, err
}

// sight finds the pods of holders in the cache, and asks the API server for
// those that have ended, or are missing without the excuse of being in flight.
func (r *Reconciler) sight(ctx context.Context, id taskpod.Identity, holders []Holder, pods []taskpod.Pod, now time.Time) ([]sighting, error) {
	seen := make([]sighting, 0, len(holders))
	for _, h := range holders {
		x := sighting{Holder: h}
		if i := slices.IndexFunc(pods, func(p taskpod.Pod) bool { return p.UID == h.UID }); i >= 0 {
			x.found = &pods[i]
		} else if ended := r.Gone(h.UID); ended || !h.inFlight(now) {
			var err error
			if x, err = look(ctx, r.API, id, h, ended); err != nil {
				return nil, err
			}
		}
		seen = append(seen, x)
	}
	return seen, nil
}

// remove deletes a claim, unless somebody has written it since it was read.
func (r *Reconciler) remove(ctx context.Context, lease *coordinationv1.Lease) error {
	err := r.API.Delete(ctx, lease, client.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion})
	if apierrors.IsConflict(err) {
		return errContended
	}
	return wrap("deleting", lease, client.IgnoreNotFound(err))
}
