package claim

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/solepod/solepod/pkg/policy"
)

// Metrics tells of claims. It is a prometheus.Collector; a nil one hears of
// nothing.
type Metrics struct {
	duration       *prometheus.HistogramVec
	adopted, swept prometheus.Counter
	claims         *prometheus.Desc

	mu     sync.Mutex
	states map[string]condition // by claim, on the leader
}

// condition is what the Reconciler has last seen of a claim.
type condition string

const (
	stateHeld     condition = "held"      // by a pod that is there
	stateInFlight condition = "in_flight" // by pods none of which is there yet
)

// NewMetrics returns metrics that know of nothing yet.
func NewMetrics() *Metrics {
	return &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "solepod_claim_duration_seconds",
			Help:    "How long it took to take a claim, with all waiting for others. outcome is taken, denied or failed.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14), // to 8 s
		}, []string{"outcome"}),
		adopted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_claims_adopted_total",
			Help: "Pods that the leader put into claims because nobody had asked solepod about them.",
		}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_claims_swept_total",
			Help: "Pods that the leader dropped from claims because they are gone, or done.",
		}),
		claims: prometheus.NewDesc("solepod_claims",
			"Claims by state: held by a pod, or in_flight, where none of its pods is there yet. Only the leader has any.", []string{"state"}, nil),
		states: map[string]condition{},
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.duration, m.adopted, m.swept} {
		c.Collect(ch)
	}
	counts := map[condition]int{stateHeld: 0, stateInFlight: 0}
	m.mu.Lock()
	for _, s := range m.states {
		counts[s]++
	}
	m.mu.Unlock()
	for s, n := range counts {
		ch <- prometheus.MustNewConstMetric(m.claims, prometheus.GaugeValue, float64(n), string(s))
	}
}

func (m *Metrics) took(began time.Time, d policy.Decision, err error) {
	if m == nil {
		return
	}
	outcome := "taken"
	switch {
	case err != nil:
		outcome = "failed"
	case !d.Allowed:
		outcome = "denied"
	}
	m.duration.WithLabelValues(outcome).Observe(time.Since(began).Seconds())
}

// repaired notes what the Reconciler has made of the holders of a claim.
func (m *Metrics) repaired(claim string, seen []observation, next []Holder) {
	if m == nil {
		return
	}
	adopted := 0
	for _, h := range next {
		if !holdsUID(seen, h.UID) {
			adopted++
		}
	}
	m.adopted.Add(float64(adopted))
	m.swept.Add(float64(len(seen) + adopted - len(next)))
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case len(next) == 0:
		delete(m.states, claim)
	case adopted > 0 || slices.ContainsFunc(seen, observation.itself):
		m.states[claim] = stateHeld
	default:
		m.states[claim] = stateInFlight
	}
}
