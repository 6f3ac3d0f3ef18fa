package claim

import (
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// DeletedPods remembers pods whose watch has told of their end, for as long as a claim
// could take them for in flight. Every replica has one, so that a task whose pod
// was deleted need not wait for the leader. Such a pod may live on without the
// label that the watch selects by: only the API server knows.
type DeletedPods struct{ uids *utilcache.Expiring }

// NewDeletedPods returns an empty Gone.
func NewDeletedPods() *DeletedPods { return &DeletedPods{utilcache.NewExpiring()} }

// Has reports whether a pod has been seen, and its watch has told of its end.
func (g *DeletedPods) Has(uid types.UID) bool {
	_, ok := g.uids.Get(uid)
	return ok
}

func (g *DeletedPods) add(uid types.UID) { g.uids.Set(uid, nil, 2*GracePeriod) }

// Watch learns from an informer on pods.
func (g *DeletedPods) Watch(pods cache.Informer) error {
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
