package certs

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type served struct {
	Source
	leaf *x509.Certificate
}

func (s served) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &tls.Certificate{Leaf: s.leaf}, nil
}

func valueOf(t *testing.T, gauge prometheus.Collector) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := registry.Register(gauge); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].Metric[0].GetGauge().GetValue()
}

// The alert on certificates compares these two, whatever their lifetime is.
func TestTimestamps(t *testing.T) {
	began := time.Unix(1_000_000, 0)
	source := served{leaf: &x509.Certificate{NotBefore: began, NotAfter: began.Add(9 * time.Hour)}}
	for name, c := range map[string]struct {
		metric prometheus.Collector
		want   time.Duration
	}{
		"expiry":  {Expiry(source), 9 * time.Hour},
		"renewal": {Renewal(source), 6 * time.Hour},
	} {
		if got := valueOf(t, c.metric); got != float64(began.Add(c.want).Unix()) {
			t.Errorf("%s: %.0f", name, got)
		}
	}
	none := &Rotation{}
	for _, metric := range []prometheus.Collector{Expiry(none), Renewal(none)} {
		if got := valueOf(t, metric); got != 0 {
			t.Errorf("without a certificate: %.0f", got)
		}
	}
}
