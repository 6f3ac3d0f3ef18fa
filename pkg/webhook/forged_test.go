package webhook

import (
	"net/http"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Without a client CA, any client can post a review of a pod that is not being
// created. The claim expires in time, but each further review extends it.
// docs/security.md documents it.
func TestForgedReviews(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type forged struct {
		after  time.Duration
		uid    types.UID
		labels string // key=value, one or none
	}
	for name, tc := range map[string]struct {
		forged []forged
		real   string        // its label
		free   time.Duration // when the task is free
		claims int           // that there are in the end
	}{
		"one":                         {[]forged{{0, "1", ""}}, "", 60 * time.Second, 1},
		"of another environment":      {[]forged{{0, "1", "airflow-environment=production"}}, "", 60 * time.Second, 1},
		"of a later try":              {[]forged{{0, "1", "try_number=7"}}, "", 60 * time.Second, 1},
		"the same again":              {[]forged{{0, "1", ""}, {50 * time.Second, "1", ""}}, "", 110 * time.Second, 1},
		"again, as another pod's":     {[]forged{{0, "1", ""}, {50 * time.Second, "2", ""}, {100 * time.Second, "3", ""}}, "", 160 * time.Second, 1},
		"again, too late":             {[]forged{{0, "1", ""}, {61 * time.Second, "2", ""}}, "", 121 * time.Second, 1},
		"of another task":             {[]forged{{0, "1", "task_id=other"}}, "", 0, 2},
		"of the same map index":       {[]forged{{0, "1", "map_index=3"}}, "map_index=3", 60 * time.Second, 2},
		"of another map index":        {[]forged{{0, "1", "map_index=4"}}, "map_index=3", 0, 3},
		"mapped, for an unmapped pod": {[]forged{{0, "1", "map_index=3"}}, "", 90 * time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			api := cluster(t)
			now := start
			h := newHooks(api, api, func(h *hooks) { h.guard.now = func() time.Time { return now } })
			ask := func(name string, uid types.UID, label string) *admissionv1.AdmissionResponse {
				pod := taskPod(name)
				pod.UID = uid
				if key, value, ok := strings.Cut(label, "="); ok {
					pod.Labels[key] = value
				}
				return post(t, &h.guard, review(pod, func(r *admissionv1.AdmissionReview) {
					if pod.Labels[taskpod.DefaultEnvironmentLabel] == "production" {
						r.Request.UserInfo.Username = "somebody"
					}
				}))
			}
			for _, f := range tc.forged {
				now = start.Add(f.after)
				if got := outcome(ask("forged", f.uid, f.labels)); got != "allow" {
					t.Fatalf("forged: %s", got)
				}
			}
			if tc.free > 0 {
				now = start.Add(tc.free - time.Millisecond)
				if r := ask("real", "real", tc.real); r.Allowed || r.Result.Code != http.StatusConflict || r.AuditAnnotations[reasonAnnotation] != string(policy.InFlight) {
					t.Errorf("after %s: %s", now.Sub(start), outcome(r))
				}
			}
			now = start.Add(tc.free)
			if got := outcome(ask("real", "real", tc.real)); got != "allow" {
				t.Errorf("after %s: %s", tc.free, got)
			}
			var leases coordinationv1.LeaseList
			if err := api.List(t.Context(), &leases, client.InNamespace("solepod-system")); err != nil || len(leases.Items) != tc.claims {
				t.Errorf("%d claims, want %d, %v", len(leases.Items), tc.claims, err)
			}
			// The real one is safe from then on.
			if got := outcome(ask("forged", "9", tc.real)); got == "allow" {
				t.Error("a stranger has got what is taken")
			}
		})
	}
}
