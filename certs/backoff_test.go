package certs

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// After an outage of ten minutes, certificates are looked at within half a minute.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over, read := time.Now().Add(10*time.Minute), make(chan struct{})
		api := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, _ client.WithWatch, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
				if time.Now().Before(over) {
					return errors.New("an outage")
				}
				close(read)
				<-ctx.Done() // no more is tested
				return ctx.Err()
			},
		}).Build()
		o := options()
		o.Reconciler = &Rotation{api: api}
		renewal, err := controller.NewUnmanaged("certificates", o)
		if err != nil {
			t.Fatal(err)
		}
		err = renewal.Watch(source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			q.Add(reconcile.Request{})
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = renewal.Start(t.Context()) }()
		<-read
		if late := time.Since(over); late > 30*time.Second {
			t.Errorf("%s after the outage", late)
		}
	})
}
