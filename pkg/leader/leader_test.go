package leader

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

type fakeManager struct {
	manager.Manager
	cache cache.Cache
}

func (fakeManager) GetLogger() logr.Logger  { return logr.Discard() }
func (m fakeManager) GetCache() cache.Cache { return m.cache }

type fakeCache struct {
	cache.Cache
	informer cache.Informer
}

func (c fakeCache) GetInformer(context.Context, client.Object, ...cache.InformerGetOption) (cache.Informer, error) {
	return c.informer, nil
}

// A part that fails ends the term, and the next one starts all of the work again.
func TestPartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		l := &Leader{mgr: fakeManager{}}
		var first, second int
		l.Add(func(term manager.Manager) error {
			return errors.Join(
				term.Add(manager.RunnableFunc(func(ctx context.Context) error {
					if first++; first < 3 {
						return errors.New("for example, a cache that does not fill")
					}
					<-ctx.Done()
					return nil
				})),
				term.Add(manager.RunnableFunc(func(ctx context.Context) error {
					second++
					<-ctx.Done()
					return nil
				})),
			)
		})
		ended := make(chan error, 1)
		go func() { ended <- l.Start(ctx) }()
		time.Sleep(time.Minute) // of the fake clock
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if first != 3 || second != 3 {
			t.Errorf("started %d and %d times, want 3", first, second)
		}
	})
}

// The handlers of a term do not stay in the informer, also when one is added late.
func TestHandlersAreRemoved(t *testing.T) {
	pods := fcache.NewFakeControllerSource()
	t.Cleanup(pods.Shutdown)
	informer := toolscache.NewSharedIndexInformer(pods, &corev1.Pod{}, 0, nil)
	go informer.RunWithContext(t.Context())
	seen := make(chan string, 10)
	handler := func(name string) toolscache.ResourceEventHandler {
		return toolscache.ResourceEventHandlerFuncs{AddFunc: func(any) { seen <- name }}
	}
	term := &term{Manager: fakeManager{cache: fakeCache{informer: informer}}}
	add := func(name string) {
		t.Helper()
		i, err := term.GetCache().GetInformer(t.Context(), &corev1.Pod{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := i.AddEventHandlerWithOptions(handler(name), toolscache.HandlerOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	add("in the term")
	pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}})
	if got := <-seen; got != "in the term" {
		t.Error(got)
	}
	if err := term.handlers.remove(); err != nil {
		t.Fatal(err)
	}
	add("late")
	if _, err := informer.AddEventHandler(handler("after it")); err != nil {
		t.Fatal(err)
	}
	<-seen // x
	pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "y"}})
	if got := <-seen; got != "after it" {
		t.Errorf("%s: a handler was called after its term", got)
	}
}
