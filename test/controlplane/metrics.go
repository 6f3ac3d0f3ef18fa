package controlplane

import (
	"bytes"
	"context"
	"fmt"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/kubernetes"
)

// Sum is the sum of the Samples. It is an error if there are none.
func Sum(metrics []byte, name string, labels map[string]string) (float64, error) {
	samples, err := Samples(metrics, name, labels)
	if err == nil && len(samples) == 0 {
		err = fmt.Errorf("no metric %s with labels %v", name, labels)
	}
	return sum(samples), err
}

func sum(samples []float64) (sum float64) {
	for _, sample := range samples {
		sum += sample
	}
	return sum
}

// Samples are the values of the metrics of a name that have all of labels, in what
// a process answers at /metrics. Of a histogram it is how much was observed.
func Samples(metrics []byte, name string, labels map[string]string) (samples []float64, err error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(metrics))
	if err != nil {
		return nil, err
	}
	for _, metric := range families[name].GetMetric() {
		missing := len(labels)
		for _, label := range metric.GetLabel() {
			if value, asked := labels[label.GetName()]; asked && value == label.GetValue() {
				missing--
			}
		}
		if missing > 0 {
			continue
		}
		value := metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + metric.GetUntyped().GetValue()
		if families[name].GetType() == dto.MetricType_HISTOGRAM {
			value = float64(metric.GetHistogram().GetSampleCount())
		}
		samples = append(samples, value)
	}
	return samples, nil
}

// Counted is the sum of the API server's own Samples, 0 if it has none yet.
func (c *ControlPlane) Counted(ctx context.Context, counter string, labels map[string]string) (int, error) {
	clients, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return 0, err
	}
	metrics, err := clients.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	samples, err := Samples(metrics, counter, labels)
	return int(sum(samples)), err
}
