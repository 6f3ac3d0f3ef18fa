package page

import (
	"bytes"
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/solepod/solepod/pkg/audit"
)

// Live makes the page when it is asked for, at most once in Every. It is an
// http.Handler, and a manager.Runnable that counts decisions while it runs.
type Live struct {
	Source  audit.Source
	Options audit.Options // but Now
	Replica string
	// Decisions has the metric solepod_decisions_total.
	Decisions prometheus.Gatherer
	// Every is how old a page may be; a scan is dear.
	Every time.Duration

	making sync.Mutex // one scan at a time
	made   []byte
	madeAt time.Time

	mu      sync.Mutex
	minutes []Minute
	sums    map[string]float64
}

// history is how many minutes are remembered.
const history = 60

// ServeHTTP implements http.Handler.
func (l *Live) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the page can only be read", http.StatusMethodNotAllowed)
		return
	}
	page, err := l.page(r.Context())
	if err != nil {
		ctrllog.FromContext(r.Context()).Error(err, "Could not make the page")
		http.Error(w, "solepod could not scan the cluster: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(page) // who has gone needs no answer
}

func (l *Live) page(ctx context.Context) ([]byte, error) {
	l.making.Lock()
	defer l.making.Unlock()
	if time.Since(l.madeAt) < l.Every {
		return l.made, nil
	}
	cluster, err := l.Source.Collect(ctx)
	if err != nil {
		return nil, err
	}
	options := l.Options
	options.Now = time.Now()
	report := audit.Scan(cluster, options)
	if err := l.count(options.Now); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := (Page{Report: &report, Replica: l.Replica, Minutes: l.history()}).Render(&b); err != nil {
		return nil, err
	}
	l.made, l.madeAt = b.Bytes(), time.Now()
	return l.made, nil
}

// Start implements manager.Runnable.
func (l *Live) Start(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := l.count(time.Now()); err != nil {
			ctrllog.FromContext(ctx).Error(err, "Could not count the decisions")
		}
	}, 10*time.Second)
	return nil
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: each replica
// has decisions of its own.
func (l *Live) NeedLeaderElection() bool { return false }

// count adds what has been decided since the last call to the minute of now.
func (l *Live) count(now time.Time) error {
	families, err := l.Decisions.Gather()
	if err != nil {
		return err
	}
	sums := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "solepod_decisions_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "verdict" {
					sums[label.GetValue()] += metric.GetCounter().GetValue()
				}
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	start := now.Truncate(time.Minute)
	for len(l.minutes) == 0 || l.minutes[len(l.minutes)-1].Start.Before(start) {
		next := start
		if n := len(l.minutes); n > 0 && start.Sub(l.minutes[n-1].Start) < history*time.Minute {
			next = l.minutes[n-1].Start.Add(time.Minute)
		}
		l.minutes = append(l.minutes, Minute{Start: next, Verdicts: map[string]int{}})
	}
	l.minutes = l.minutes[max(0, len(l.minutes)-history):]
	current := l.minutes[len(l.minutes)-1]
	for verdict, sum := range sums {
		current.Verdicts[verdict] += int(sum - l.sums[verdict])
	}
	l.sums = sums
	return nil
}

func (l *Live) history() []Minute {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Minute(nil), l.minutes...)
}
