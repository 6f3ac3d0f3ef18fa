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

// Freshness knows when the API server last said anything about the kinds of
// objects that decisions rest on. A cache of which it has said nothing for
// longer than a limit may be stale, and its replica is not cachesUsable to decide.
//
// It listens to the watches themselves. That the versions of caches move on
// would tell little: where nothing changes, the bookmarks that come once a minute
// (the first after two) name the same version until etcd happens to tell the API
// server of its progress. And lest silence be taken for staleness where no
// bookmarks come, a watch that has been silent for a third of the limit is ended
// and begun again, which an API server that is there answers at once.
//
// It is a prometheus.Collector.
type Freshness struct {
	limit time.Duration
	now   func() time.Time
	desc  *prometheus.Desc
	mu    sync.Mutex
	heard map[string]time.Time // by kind
}

// MinStaleness is the least limit of a Freshness. Watches that end within a
// second are taken for broken, and everything is listed anew.
const MinStaleness = 5 * time.Second

// NewFreshness returns a Freshness with a limit, to be given to CacheOptions and
// Setup. It begins as if it had just heard of everything.
func NewFreshness(limit time.Duration) *Freshness { return newFreshness(limit, time.Now) }

func newFreshness(limit time.Duration, now func() time.Time) *Freshness {
	f := &Freshness{
		limit: limit, now: now, heard: map[string]time.Time{},
		desc: prometheus.NewDesc("solepod_cache_last_update_timestamp_seconds",
			"When the API server last said anything about this kind of object, which it does three times in --max-staleness, in seconds since 1970.", []string{"kind"}, nil),
	}
	for _, kind := range cachedKinds() {
		f.hear(kind)
	}
	return f
}

// cachedKinds are what decisions rest on, beside what is read live.
func cachedKinds() []string { return []string{"Pod", "Namespace", "ServiceAccount"} }

func (f *Freshness) hear(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard[kind] = f.now()
}

func (f *Freshness) last(kind string) (at time.Time, watched bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, watched = f.heard[kind]
	return at, watched
}

// informer is toolscache.NewSharedIndexInformer, which listens in on what is
// watched.
func (f *Freshness) informer(lw toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	kind := object.GetObjectKind().GroupVersionKind().Kind
	if _, watched := f.last(kind); !watched {
		return toolscache.NewSharedIndexInformer(lw, object, resync, indexers)
	}
	from := toolscache.ToListerWatcherWithContext(lw)
	return toolscache.NewSharedIndexInformer(&toolscache.ListWatch{
		ListWithContextFunc: from.ListWithContext,
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return f.listen(ctx, kind, from, options)
		},
	}, object, resync, indexers)
}

// listen begins a watch, and hears what it tells.
func (f *Freshness) listen(ctx context.Context, kind string, from toolscache.WatcherWithContext, options metav1.ListOptions) (watch.Interface, error) {
	ctx, end := context.WithCancel(ctx)
	patience := time.AfterFunc(f.limit, end) // an answer that has not come by then will not come
	w, err := from.WatchWithContext(ctx, options)
	for utilnet.IsConnectionRefused(err) && ctx.Err() == nil {
		// The API server is being restarted. Informers would ask again after up
		// to a minute, for most of which it is back.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			w, err = from.WatchWithContext(ctx, options)
		}
	}
	patience.Stop()
	if err != nil {
		end()
		return nil, err
	}
	f.hear(kind)
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
				f.hear(kind)
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

// check returns an error of status 503 if nothing has been said about a kind
// for too long.
func (f *Freshness) check() error {
	for _, kind := range cachedKinds() {
		at, _ := f.last(kind)
		if silent := f.now().Sub(at); silent > f.limit {
			return apierrors.NewServiceUnavailable(fmt.Sprintf(
				"the API server has told nothing of kind %s for %s, so that what is known of it may be out of date", kind, silent.Round(time.Second)))
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
		at, _ := f.last(kind)
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000, kind)
	}
}
