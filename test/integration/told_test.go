package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// A denial creates one event on the conflicting pod, with a count.
func TestDenialsAreTold(t *testing.T) {
	g := shared.Own(t, plane, solepod.Options{})
	w := newWorld(t, "told")
	pod := w.mustCreate(w.airflow("alpha"), "x")
	production := w.airflow("production")
	for range 3 {
		if err := production.Delete(t.Context(), pod); err == nil {
			t.Fatal("admitted")
		}
		if _, err := w.create(production, "y"); err == nil {
			t.Fatal("admitted")
		}
	}
	if err := production.Delete(t.Context(), pod, client.DryRunAll); err == nil {
		t.Fatal("admitted")
	}
	fixture.Eventually(t, func() error {
		for reason, want := range map[string]string{
			"ForeignEnvironment":   "environment production may not delete a pod of environment alpha",
			"DuplicateEnvironment": "another Airflow environment is already running this task",
		} {
			events, err := solepod.Events(t.Context(), w.admin, pod, reason)
			if err != nil {
				return err
			}
			if len(events) != 1 || events[0].Type != corev1.EventTypeWarning || !strings.Contains(events[0].Note, want) {
				return fmt.Errorf("%s: %+v", reason, events)
			}
		}
		return nil
	})
	// A line in the log, and an annotation in the API server's audit log, for each.
	log := read(t, g.Log)
	for line, want := range map[string]int{
		`level=INFO msg=Denied .*operation=CREATE namespace=told-jobs name=y .*reason=DuplicateEnvironment code=403`: 3,
		`level=INFO msg=Denied .*operation=DELETE namespace=told-jobs name=x .*reason=ForeignEnvironment code=403`:   4,
		`level=DEBUG.* msg=Admitted .*operation=CREATE namespace=told-jobs name=x `:                                  1,
	} {
		if got := len(regexp.MustCompile(line).FindAllString(log, -1)); got != want {
			t.Errorf("%d lines of %s, want %d, in\n%s", got, line, want, log)
		}
	}
	fixture.Eventually(t, func() error {
		audited := read(t, plane.AuditLog)
		for _, want := range []string{`"guard.solepod.io/reason":"DuplicateEnvironment"`, `"access.solepod.io/reason":"ForeignEnvironment"`} {
			if !strings.Contains(audited, want) {
				return fmt.Errorf("no %s in the audit log", want)
			}
		}
		return nil
	})
	metrics, err := g.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`solepod_foreign_access_total{from="production",operation="DELETE",to="alpha",verdict="denied"} 4`,
		`solepod_decisions_total{environment="production",operation="CREATE",reason="DuplicateEnvironment",verdict="denied"} 3`,
		`solepod_decisions_total{environment="alpha",operation="CREATE",reason="",verdict="admitted"} 1`,
	} {
		if !strings.Contains(string(metrics), want+"\n") {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
}

// With disclosure: Discreet, neither the task log of one environment nor the
// events at the pod of the other tell of the other. The log has both.
func TestDiscreet(t *testing.T) {
	g := shared.Own(t, plane, solepod.Options{Config: "apiVersion: solepod.io/v1alpha1\nkind: Configuration\ndisclosure: Discreet\n"})
	w := newWorld(t, "discreet")
	pod := w.mustCreate(w.airflow("alpha"), "secret-of-alpha")
	production := w.airflow("production")
	_, created := w.create(production, "secret-of-production")
	for reason, err := range map[string]error{
		"DuplicateEnvironment": created,
		"ForeignEnvironment":   production.Delete(t.Context(), w.pod("secret-of-alpha")),
	} {
		if err == nil || !strings.Contains(err.Error(), "["+reason+"]") {
			t.Fatalf("%v, want %s", err, reason)
		}
		if hidden := regexp.MustCompile("secret-of-alpha|discreet-alpha|environment alpha").FindString(err.Error()); hidden != "" {
			t.Errorf("production learns %s: %v", hidden, err)
		}
		fixture.Eventually(t, func() error {
			events, err := solepod.Events(t.Context(), w.admin, pod, reason)
			if err != nil || len(events) != 1 {
				return fmt.Errorf("%d events: %w", len(events), err)
			}
			if strings.Contains(events[0].Note, "production") {
				t.Errorf("alpha learns who it was: %s", events[0].Note)
			}
			return nil
		})
	}
	log := read(t, g.Log)
	if !regexp.MustCompile(`msg=Denied .*secret-of-production.*discreet-jobs/secret-of-alpha, environment alpha.*Requested by system:serviceaccount:discreet-production:airflow`).MatchString(log) {
		t.Errorf("the log lacks who and what:\n%s", log)
	}
}
