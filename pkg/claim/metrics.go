package claim

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/solepod/solepod/pkg/policy"
)

// Metrics are the metrics of claims. It implements prometheus.Collector. The
// methods of a nil Metrics do nothing.
type Metrics struct {
	duration       *prometheus.HistogramVec
	adopted, swept prometheus.Counter
	claims         *prometheus.Desc

	mu     sync.Mutex
	states map[string]condition // by name of the claim, on the leader
}

// condition is the state of a claim when the Reconciler last read it.
type condition string

const (
	stateHeld     condition = "held"      // by a pod that exists
	stateInFlight condition = "in_flight" // none of its pods exists yet
)

// NewMetrics returns empty metrics.
func NewMetrics() *Metrics {
	return &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "solepod_claim_duration_seconds",
			Help:    "Time to take a claim, including the wait for conflicting pods in flight. outcome is taken, denied or failed.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14), // to 8 s
		}, []string{"outcome"}),
		adopted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_claims_adopted_total",
			Help: "Pods that the leader added to claims because they were created without solepod.",
		}),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_claims_swept_total",
			Help: "Pods that the leader removed from claims because they were deleted or checked.",
		}),
		claims: prometheus.NewDesc("solepod_claims",
			"Claims by state: held (a pod of the claim exists) or in_flight (none exists yet). Only the leader reports them.", []string{"state"}, nil),
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

// repaired records a repair: the holders before, and those after it.
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

// forget removes the states of all claims.
func (m *Metrics) forget() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.states)
}
