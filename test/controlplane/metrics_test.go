package controlplane

import "testing"

func TestSum(t *testing.T) {
	metrics := []byte(`# TYPE requests_total counter
requests_total{resource="pods",verb="GET"} 3
requests_total{resource="pods",verb="LIST"} 4
requests_total{resource="leases",verb="GET"} 5
# TYPE duration_seconds histogram
duration_seconds_bucket{name="a,b",le="+Inf"} 7
duration_seconds_sum{name="a,b"} 0.5
duration_seconds_count{name="a,b"} 7
# TYPE pods gauge
pods 1.5e+09
`)
	for _, test := range []struct {
		name   string
		labels map[string]string
		want   float64
		fails  bool
	}{
		{"requests_total", nil, 12, false},
		{"requests_total", map[string]string{"verb": "GET"}, 8, false},
		{"requests_total", map[string]string{"verb": "GET", "resource": "pods"}, 3, false},
		{"requests_total", map[string]string{"verb": "GET", "code": ""}, 0, true},
		{"duration_seconds", map[string]string{"name": "a,b"}, 7, false},
		{"pods", nil, 1.5e9, false},
		{"requests", nil, 0, true},
	} {
		got, err := Sum(metrics, test.name, test.labels)
		if got != test.want || (err != nil) != test.fails {
			t.Errorf("%s%v: %v, %v", test.name, test.labels, got, err)
		}
	}
	if _, err := Sum([]byte("{{{"), "pods", nil); err == nil {
		t.Error("what is no metrics has no error")
	}
}
