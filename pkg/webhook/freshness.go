package webhook

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
)

// Freshness records when the API server last sent an event for each kind of object
// that decisions depend on. After a longer silence than a limit, the cache of that
// kind may be stale, and the replica cannot decide.
//
// It observes the watches themselves. The resourceVersion of a cache is not
// sufficient: if nothing changes, bookmarks arrive once a minute (the first after
// two minutes) with the same version. If no bookmarks arrive, a working watch would
// look stale. So a watch without events for a third of the limit is ended and
// started again. A running API server responds to that immediately.
//
// It implements prometheus.Collector.
type Freshness struct {
	limit time.Duration
	now   func() time.Time
	desc  *prometheus.Desc
	mu    sync.Mutex
	last  map[string]time.Time // by kind
}

// MinStaleness is the minimum limit of a Freshness. An informer treats a watch that
// ends within a second as broken, and lists all objects again.
const MinStaleness = 5 * time.Second

// NewFreshness returns a Freshness for CacheOptions and Setup. All caches start as
// fresh.
func NewFreshness(limit time.Duration) *Freshness { return newFreshness(limit, time.Now) }

func newFreshness(limit time.Duration, now func() time.Time) *Freshness {
	f := &Freshness{
		limit: limit, now: now, last: map[string]time.Time{},
		desc: prometheus.NewDesc("solepod_cache_last_update_timestamp_seconds",
			"Time of the last watch event for this kind of object, in seconds since 1970. It advances at least three times in --max-staleness.", []string{"kind"}, nil),
	}
	for _, kind := range cachedKinds() {
		f.record(kind)
	}
	return f
}

// cachedKinds returns the kinds of cached objects that decisions depend on.
func cachedKinds() []string { return []string{"Pod", "Namespace", "ServiceAccount"} }

func (f *Freshness) record(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last[kind] = f.now()
}

func (f *Freshness) lastEvent(kind string) (at time.Time, watched bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, watched = f.last[kind]
	return at, watched
}

// informer is toolscache.NewSharedIndexInformer with observed watches.
func (f *Freshness) informer(lw toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	kind := object.GetObjectKind().GroupVersionKind().Kind
	if _, watched := f.lastEvent(kind); !watched {
		return toolscache.NewSharedIndexInformer(lw, object, resync, indexers)
	}
	from := toolscache.ToListerWatcherWithContext(lw)
	return toolscache.NewSharedIndexInformer(&toolscache.ListWatch{
		ListWithContextFunc: from.ListWithContext,
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return f.watch(ctx, kind, from, options)
		},
	}, object, resync, indexers)
}

// watch starts a watch and records its events.
func (f *Freshness) watch(ctx context.Context, kind string, from toolscache.WatcherWithContext, options metav1.ListOptions) (watch.Interface, error) {
	ctx, end := context.WithCancel(ctx)
	timeout := time.AfterFunc(f.limit, end)
	w, err := from.WatchWithContext(ctx, options)
	for utilnet.IsConnectionRefused(err) && ctx.Err() == nil {
		// The API server is restarting. An informer would retry only after up to a
		// minute.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			w, err = from.WatchWithContext(ctx, options)
		}
	}
	timeout.Stop()
	if err != nil {
		end()
		return nil, err
	}
	f.record(kind)
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	go func() {
		defer func() {
			end()
			w.Stop()
			// A watch sends an error when it is cut off, and blocks until the error is
			// received. The watch.Filter of controller-runtime would block for ever.
			for range w.ResultChan() {
			}
		}()
		defer close(events)
		f.relay(kind, w, events, out.StopChan(), options.SendInitialEvents != nil)
	}()
	return out, nil
}

// relay passes on the events of a watch until it ends, is stopped, or sends
// nothing for a third of the limit. The informer then starts a new watch.
// An initial list may take any time.
func (f *Freshness) relay(kind string, from watch.Interface, to chan<- watch.Event, stop <-chan struct{}, initialList bool) {
	silence := time.NewTimer(f.limit / 3)
	defer silence.Stop()
	if initialList {
		silence.Stop()
	}
	for {
		select {
		case e, ok := <-from.ResultChan():
			if !ok {
				return
			}
			if e.Type != watch.Error {
				f.record(kind)
			}
			silence.Reset(f.limit / 3)
			select {
			case to <- e:
			case <-stop:
				return
			}
		case <-silence.C:
			return
		case <-stop:
			return
		}
	}
}

// check returns an error of status 503 if a cache may be stale.
func (f *Freshness) check() error {
	for _, kind := range cachedKinds() {
		at, _ := f.lastEvent(kind)
		if silent := f.now().Sub(at); silent > f.limit {
			return apierrors.NewServiceUnavailable(fmt.Sprintf(
				"cached %ss are stale: no watch event from the API server for %s", kind, silent.Round(time.Second)))
		}
	}
	return nil
}

func (f *Freshness) readyz(*http.Request) error { return f.check() }

// Describe implements prometheus.Collector.
func (f *Freshness) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }

// Collect implements prometheus.Collector.
func (f *Freshness) Collect(ch chan<- prometheus.Metric) {
	for _, kind := range cachedKinds() {
		at, _ := f.lastEvent(kind)
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000, kind)
	}
}
