package claim

import (
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// DeletedPods remembers pods whose end the watch has reported, for as long as a
// claim could treat them as in flight. Every replica has one, so that a task whose
// pod was deleted need not wait for the leader. The pod may still exist without
// the label that the watch selects by, so the API server must confirm its end.
type DeletedPods struct{ uids *utilcache.Expiring }

// NewDeletedPods returns an empty DeletedPods.
func NewDeletedPods() *DeletedPods { return &DeletedPods{utilcache.NewExpiring()} }

// Has reports whether the watch has reported the end of a pod.
func (g *DeletedPods) Has(uid types.UID) bool {
	_, ok := g.uids.Get(uid)
	return ok
}

func (g *DeletedPods) add(uid types.UID) { g.uids.Set(uid, nil, 2*GracePeriod) }

// Watch adds the pods whose end an informer reports.
func (g *DeletedPods) Watch(pods cache.Informer) error {
	_, err := pods.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		UpdateFunc: func(before, after any) {
			// An interrupted watch reports a deletion and a creation with the same
			// name as one update.
			if before, after := before.(client.Object), after.(client.Object); before.GetUID() != after.GetUID() {
				g.add(before.GetUID())
			}
		},
		DeleteFunc: func(object any) {
			if last, missed := object.(toolscache.DeletedFinalStateUnknown); missed {
				object = last.Obj
			}
			// The last state may be missing.
			if pod, known := object.(client.Object); known {
				g.add(pod.GetUID())
			}
		},
	})
	return err
}
