package webhook

import (
	"errors"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/client-go/tools/events"
)

// The hook never denies a pod, and never waits for what it lacks.
func TestDeclareFailsOpen(t *testing.T) {
	airflow := `{"metadata":{"name":"scheduler","namespace":"airflow-alpha"},"spec":{"containers":[{"name":"x","image":"apache/airflow"}]}}`
	for name, tc := range map[string]struct {
		object  string
		change  func(*hooks)
		event   string
		patched bool
	}{
		"a pod of Airflow": {object: airflow, patched: true},
		"the caches are filling": {object: airflow, change: func(h *hooks) {
			h.declare.cachesUsable = func() error { return errNotSynced }
		}, event: "pod scheduler: the caches are still filling"},
		"no pod":   {object: `[]`, event: "NotDeclared"},
		"null":     {object: `null`, event: "NotDeclared"},
		"too many": {object: `{"spec":{"containers":[` + strings.TrimSuffix(strings.Repeat("{},", 1001), ",") + `]}}`, event: "a list has more than 1000 items"},
		"a read that fails": {object: airflow, change: func(h *hooks) {
			h.declare.cachesUsable = func() error { return errors.New("down") }
		}, event: "down"},
		"a task pod": {object: strings.Replace(airflow, `"name":"scheduler"`, `"labels":{"kubernetes_pod_operator":"True"},"name":"scheduler"`, 1)},
		"opted out":  {object: strings.Replace(airflow, `"name":"scheduler"`, `"labels":{"solepod.io/declare":"disabled"},"name":"scheduler"`, 1)},
		"no Airflow": {object: strings.Replace(airflow, "apache/airflow", "postgres", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(10)
			h := newHooks(cluster(t), cluster(t), func(h *hooks) {
				h.declare.events = recorder
				if tc.change != nil {
					tc.change(h)
				}
			})
			answer := post(t, &h.declare, review(nil, func(r *admissionv1.AdmissionReview) {
				r.Request.Namespace, r.Request.Object.Raw = "airflow-alpha", []byte(tc.object)
			}))
			if !answer.Allowed || answer.Result != nil && answer.Result.Code >= 400 {
				t.Errorf("%+v", answer)
			}
			if patched := len(answer.Patch) > 0; patched != tc.patched {
				t.Errorf("patched %v: %s", patched, answer.Patch)
			}
			got := ""
			select {
			case got = <-recorder.Events:
			default:
			}
			if (got == "") != (tc.event == "") || !strings.Contains(got, tc.event) {
				t.Errorf("event %q, want %q", got, tc.event)
			}
		})
	}
}
