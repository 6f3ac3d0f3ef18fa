package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// Controller reclaims leftovers periodically, on the leader. It implements
// manager.Runnable and prometheus.Collector.
type Controller struct {
	source    Source
	options   Options
	reclaimer Reclaimer
	reclaimed *prometheus.CounterVec
}

// NewController returns a Controller that uses the Client and the Limiter of r.
func NewController(s Source, o Options, r Reclaimer) *Controller {
	return &Controller{s, o, r, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "solepod_pods_reclaimed_total",
		Help: "Leftover pods by reason and by outcome: Reclaimed, Changed (skipped) or Failed.",
	}, []string{"reason", "outcome"})}
}

// Describe implements prometheus.Collector.
func (c *Controller) Describe(ch chan<- *prometheus.Desc) { c.reclaimed.Describe(ch) }

// Collect implements prometheus.Collector.
func (c *Controller) Collect(ch chan<- prometheus.Metric) { c.reclaimed.Collect(ch) }

// rescan is the maximum time between two scans.
const rescan = 5 * time.Minute

// Start implements manager.Runnable.
func (c *Controller) Start(ctx context.Context) error {
	log := ctrllog.FromContext(ctx).WithName("reclaim")
	every := min(rescan, max(c.options.OlderThan/2, time.Second))
	wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		if err := c.once(ctrllog.IntoContext(ctx, log)); err != nil && ctx.Err() == nil {
			log.Error(err, "Cannot reclaim")
		}
	}, every, 0.1, false)
	return nil
}

func (c *Controller) once(ctx context.Context) error {
	cluster, err := c.source.Collect(ctx)
	if err != nil {
		return err
	}
	options := c.options
	options.Now = time.Now()
	report := Scan(cluster, options)
	reclaimer := c.reclaimer
	reclaimer.Done = func(r Result) {
		c.reclaimed.WithLabelValues(string(r.Reason), string(r.Outcome)).Inc()
		values := []any{"namespace", r.Namespace, "pod", r.Name, "podUID", r.UID, "environment", r.Environment, "reason", r.Reason, "detail", r.Detail, "outcome", r.Outcome}
		if r.Outcome == outcomeFailed {
			ctrllog.FromContext(ctx).Error(fmt.Errorf("%s", r.Error), "Cannot reclaim", values...)
		} else {
			ctrllog.FromContext(ctx).Info("Reclaimed", values...)
		}
	}
	_, err = reclaimer.Reclaim(ctx, report.Reclaimable())
	return err
}
