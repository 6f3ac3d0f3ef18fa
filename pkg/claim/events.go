package claim

import (
	"context"
	"maps"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/solepod/solepod/pkg/taskpod"
)

type (
	podEvent   = *metav1.PartialObjectMetadata
	leaseEvent = *coordinationv1.Lease
	queue      = workqueue.TypedRateLimitingInterface[Request]
)

// podEvents turns events of pods into requests. It adds deleted pods to gone
// before it adds the request, because the Reconciler needs to know them.
func podEvents(gone *DeletedPods) handler.TypedEventHandler[podEvent, Request] {
	return handler.TypedFuncs[podEvent, Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[podEvent], q queue) {
			if claim := claimOfPod(e.Object); claim != "" {
				q.AddAfter(claim, adoptAfter)
			}
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[podEvent], q queue) {
			replaced := e.ObjectOld.UID != e.ObjectNew.UID // see DeletedPods.Watch
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

// leaseEvents turns events of claims into requests. The request for a new claim is
// delayed until its pod, which is created after it, has probably arrived as well.
func leaseEvents() handler.TypedEventHandler[leaseEvent, Request] {
	enqueue := func(lease leaseEvent, q queue, after time.Duration) {
		if strings.HasPrefix(lease.Name, prefix) { // not the Lease of the leader election
			q.AddAfter(Request(lease.Name), after)
		}
	}
	return handler.TypedFuncs[leaseEvent, Request]{
		CreateFunc: func(_ context.Context, e event.TypedCreateEvent[leaseEvent], q queue) {
			enqueue(e.Object, q, adoptAfter)
		},
		UpdateFunc: func(_ context.Context, e event.TypedUpdateEvent[leaseEvent], q queue) { enqueue(e.ObjectNew, q, 0) },
		DeleteFunc: func(_ context.Context, e event.TypedDeleteEvent[leaseEvent], q queue) { enqueue(e.Object, q, 0) },
	}
}
