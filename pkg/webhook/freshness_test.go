package webhook

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/solepod/solepod/pkg/metadata"
)

// Time is a bubble's, in which it passes while all wait for it.
func TestFreshness(t *testing.T) {
	const limit = time.Minute
	var (
		f    *Freshness
		last *watch.FakeWatcher // what the API server has begun last
	)
	begin := func(context.Context) error { return nil }
	plain := func(w *watch.FakeWatcher) watch.Interface { return w }
	as := plain
	listen := func(t *testing.T, options metav1.ListOptions) (watch.Interface, error) {
		return f.watch(t.Context(), "Pod", toolscache.ToWatcherWithContext(&toolscache.ListWatch{
			WatchFuncWithContext: func(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
				last = watch.NewFake()
				return as(last), begin(ctx)
			},
		}), options)
	}
	mustListen := func(t *testing.T, options metav1.ListOptions) watch.Interface {
		t.Helper()
		w, err := listen(t, options)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	tell := func(w watch.Interface, e watch.EventType) {
		go last.Action(e, metadata.Object("Pod"))
		<-w.ResultChan()
		f.record("Namespace")
		f.record("ServiceAccount")
	}
	ended := func(w watch.Interface) bool {
		select {
		case _, ok := <-w.ResultChan():
			return !ok
		default:
			return false
		}
	}
	for name, test := range map[string]func(t *testing.T){
		"whatever is told counts, bookmarks too": func(t *testing.T) {
			w := mustListen(t, metav1.ListOptions{})
			for _, e := range []watch.EventType{watch.Added, watch.Bookmark, watch.Modified, watch.Bookmark, watch.Deleted} {
				time.Sleep(limit/3 - 1)
				tell(w, e)
			}
			if err := f.check(); err != nil {
				t.Error(err)
			}
			w.Stop()
		},
		"silence is over with the next word": func(t *testing.T) {
			time.Sleep(limit + time.Second)
			const want = "cached Pods are stale: no watch event from the API server for 1m1s"
			if err := f.check(); err == nil || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			w := mustListen(t, metav1.ListOptions{})
			tell(w, watch.Bookmark)
			if err := f.check(); err != nil {
				t.Error(err)
			}
			w.Stop()
		},
		"an error is no word": func(t *testing.T) {
			w := mustListen(t, metav1.ListOptions{})
			time.Sleep(limit/3 - 1)
			before, _ := f.lastEvent("Pod")
			tell(w, watch.Error)
			if after, _ := f.lastEvent("Pod"); !after.Equal(before) {
				t.Error("it counts")
			}
			w.Stop()
		},
		"a silent watch ends, so that another is begun": func(t *testing.T) {
			w := mustListen(t, metav1.ListOptions{})
			time.Sleep(limit/3 - 1)
			tell(w, watch.Bookmark)
			time.Sleep(limit/3 - 1)
			if ended(w) {
				t.Error("it has ended before its time")
			}
			time.Sleep(2 * time.Nanosecond)
			synctest.Wait()
			if !ended(w) || !last.IsStopped() {
				t.Error("it goes on")
			}
		},
		"there may be much to read before the first word": func(t *testing.T) {
			all := true
			w := mustListen(t, metav1.ListOptions{SendInitialEvents: &all})
			time.Sleep(10 * limit)
			tell(w, watch.Added)
			time.Sleep(limit)
			synctest.Wait()
			if !ended(w) {
				t.Error("after that it goes on although nothing comes")
			}
		},
		"who stops is not waited for": func(t *testing.T) {
			w := mustListen(t, metav1.ListOptions{})
			go last.Action(watch.Added, metadata.Object("Pod"))
			synctest.Wait() // it is not read
			w.Stop()
			synctest.Wait()
			if !last.IsStopped() {
				t.Error("it goes on")
			}
		},
		// The bubble does not end before all that was begun in it has.
		"what is told when it is stopped is taken": func(t *testing.T) {
			as = func(w *watch.FakeWatcher) watch.Interface {
				return watch.Filter(lastWord{w}, func(e watch.Event) (watch.Event, bool) { return e, true })
			}
			stopped := mustListen(t, metav1.ListOptions{})
			stopped.Stop()
			silent := mustListen(t, metav1.ListOptions{})
			time.Sleep(limit)
			synctest.Wait()
			if !ended(silent) {
				t.Error("it goes on")
			}
		},
		"an answer that does not come is given up": func(t *testing.T) {
			begin = func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
			began := time.Now()
			if _, err := listen(t, metav1.ListOptions{}); !errors.Is(err, context.Canceled) || time.Since(began) != limit {
				t.Errorf("%v after %s", err, time.Since(began))
			}
		},
		"a restarted API server is found within a second": func(t *testing.T) {
			back := time.Now().Add(limit/2 + 1)
			begin = func(context.Context) error {
				if time.Now().Before(back) {
					return fmt.Errorf("dialing: %w", syscall.ECONNREFUSED)
				}
				return nil
			}
			w := mustListen(t, metav1.ListOptions{})
			if late := time.Since(back); late > time.Second {
				t.Errorf("found after %s", late)
			}
			w.Stop()
		},
	} {
		t.Run(name, func(t *testing.T) {
			begin, as = func(context.Context) error { return nil }, plain
			synctest.Test(t, func(t *testing.T) {
				f = newFreshness(limit, time.Now)
				test(t)
			})
		})
	}
}

// lastWord is a watch that sends an error when it is stopped, as those of client-go
// may.
type lastWord struct{ *watch.FakeWatcher }

func (w lastWord) Stop() {
	go func() {
		w.Error(&metav1.Status{Message: "the connection was closed"})
		w.FakeWatcher.Stop()
	}()
}
