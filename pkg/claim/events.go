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

// podEvents turns what happens to pods into requests, and adds those that go
// to gone: whoever handles the request must know already.
func podEvents(gone *DeletedPods) handler.TypedEventHandler[podEvent, Request] {
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
