package claim

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// outage is a cache without the claims until a time.
type outage struct {
	until time.Time
	read  chan struct{} // closed at the first read after it
}

func (o outage) Get(ctx context.Context, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	if time.Now().Before(o.until) {
		return errors.New("an outage")
	}
	close(o.read)
	<-ctx.Done() // no more is tested
	return ctx.Err()
}

// After an outage of ten minutes, a claim is repaired within half a minute
// (metal3-io/baremetal-operator #3163: with the default, a quarter of an hour).
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := outage{time.Now().Add(10 * time.Minute), make(chan struct{})}
		claims, err := controller.NewTypedUnmanaged("claims", (&Reconciler{Cache: o}).options())
		if err != nil {
			t.Fatal(err)
		}
		err = claims.Watch(source.TypedFunc[Request](func(_ context.Context, q workqueue.TypedRateLimitingInterface[Request]) error {
			q.Add("claim-x")
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = claims.Start(t.Context()) }()
		<-o.read
		if late := time.Since(o.until); late > 30*time.Second {
			t.Errorf("%s after the outage", late)
		}
	})
}
