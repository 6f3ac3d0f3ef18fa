package webhook

import (
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// Verdicts, as the metrics have them.
const (
	verdictAdmitted = "admitted"
	verdictDenied   = "denied"
	verdictWarned   = "warned"  // admitted with a warning: enforcement Warn
	verdictAudited  = "audited" // admitted and noted: enforcement Audit
	verdictFailed   = "failed"  // not decided
)

// counters count decisions.
type counters struct {
	decisions, foreign *prometheus.CounterVec
	superseded         prometheus.Counter
	declared           *prometheus.CounterVec
	// environments keeps the number of time series bounded: whoever may create
	// pods may put any environment on them.
	environments bounded
}

func newCounters() *counters {
	return &counters{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "solepod_decisions_total",
			Help: "Decisions on requests for task pods. reason is empty for those that were admitted; environment is the requester's, empty if unknown.",
		}, []string{"operation", "verdict", "reason", "environment"}),
		foreign: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "solepod_foreign_access_total",
			Help: "Requests of one environment for a pod of another. verdict tells whether they were stopped.",
		}, []string{"from", "to", "operation", "verdict"}),
		superseded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "solepod_pods_superseded_total",
			Help: "Pods of earlier tries that were marked and deleted for a later one.",
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

// operationOf is the operation of a review, as far as there is one of this name:
// whoever can post reviews may invent others.
func operationOf(req admission.Request) string {
	switch req.Operation {
	case admissionv1.Create, admissionv1.Update, admissionv1.Delete, admissionv1.Connect:
		return string(req.Operation)
	}
	return overflow
}

// bounded passes on the first values that it meets, and tells the rest as other.
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
