package webhook

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// Verdicts in the metrics.
const (
	verdictAdmitted = "admitted"
	verdictDenied   = "denied"
	verdictWarned   = "warned"  // admitted with a warning: enforcement Warn
	verdictAudited  = "audited" // admitted and recorded: enforcement Audit
	verdictFailed   = "failed"  // not decided
)

// counters count decisions.
type counters struct {
	decisions, foreign *prometheus.CounterVec
	superseded         prometheus.Counter
	declared           *prometheus.CounterVec
	// environments bounds the number of time series: a requester may label a pod
	// with any environment.
	environments bounded
}

func newCounters() *counters {
	return &counters{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "solepod_decisions_total",
			Help: "Decisions on requests for task pods. reason is empty for admitted requests; environment is that of the requester, or empty.",
		}, []string{"operation", "verdict", "reason", "environment"}),
		foreign: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "solepod_foreign_access_total",
			Help: "Requests of one environment for a pod of another, by verdict.",
		}, []string{"from", "to", "operation", "verdict"}),
		superseded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_pods_superseded_total",
			Help: "Pods of earlier tries that were retired for a later one.",
		}),
		declared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "solepod_declare_pods_total",
			Help: "Pods in namespaces with solepod.io/declare=enabled by outcome: injected, skipped (Airflow, but it cannot be injected) or none (nothing to inject).",
		}, []string{"outcome"}),
		environments: bounded{limit: 100},
	}
}

func (c *counters) register(registry prometheus.Registerer) error {
	return errors.Join(registry.Register(c.decisions), registry.Register(c.foreign), registry.Register(c.superseded), registry.Register(c.declared))
}

// operationOf returns the operation of a review, or overflow for an unknown one: a
// forged review can have any.
func operationOf(req admission.Request) string {
	switch req.Operation {
	case admissionv1.Create, admissionv1.Update, admissionv1.Delete, admissionv1.Connect:
		return string(req.Operation)
	}
	return overflow
}

// bounded replaces all values after the first limit ones by overflow.
type bounded struct {
	limit int
	mu    sync.Mutex
	seen  map[string]struct{}
}

const overflow = "other"

func (b *bounded) value(value string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.seen[value]; ok {
		return value
	}
	if len(b.seen) == b.limit {
		return overflow
	}
	if b.seen == nil {
		b.seen = map[string]struct{}{}
	}
	b.seen[value] = struct{}{}
	return value
}
