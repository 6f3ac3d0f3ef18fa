package webhook

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// freshness knows when the API server last said anything about a kind of
// object: by an event or, about once a minute, by a bookmark
// (https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks).
// A cache of which it says nothing any more may be stale. It is a
// prometheus.Collector.
//
// Nobody is told of bookmarks, so it is found out by looking, and is as exact
// as looks are frequent.
type freshness struct {
	now   func() time.Time
	desc  *prometheus.Desc
	mu    sync.Mutex
	kinds map[string]*lastWord
}

// versioned is the part of an informer that tells how far it has come.
type versioned interface{ LastSyncResourceVersion() string }

type lastWord struct {
	versioned

	version string
	at      time.Time
}

func newFreshness(now func() time.Time) *freshness {
	return &freshness{
		now: now, kinds: map[string]*lastWord{},
		desc: prometheus.NewDesc("solepod_cache_last_update_timestamp_seconds",
			"When the API server last said anything about this kind of object, which it does at least each minute, in seconds since 1970.", []string{"kind"}, nil),
	}
}

func (f *freshness) watch(kind string, informer versioned) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kinds[kind] = &lastWord{versioned: informer, at: f.now()}
}

// last is when each kind was last heard of.
func (f *freshness) last() map[string]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]time.Time{}
	for kind, w := range f.kinds {
		if version := w.LastSyncResourceVersion(); version != w.version {
			w.version, w.at = version, f.now()
		}
		out[kind] = w.at
	}
	return out
}

// Describe implements prometheus.Collector.
func (f *freshness) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }

// Collect implements prometheus.Collector.
func (f *freshness) Collect(ch chan<- prometheus.Metric) {
	for kind, at := range f.last() {
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, float64(at.UnixMilli())/1000, kind)
	}
}
