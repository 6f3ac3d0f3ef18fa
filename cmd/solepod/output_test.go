package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/check"
	"github.com/solepod/solepod/pkg/taskpod"
)

func reports(format string) output[audit.Report] {
	return output[audit.Report]{kind: "AuditReport", format: format, formats: map[string]func(io.Writer, audit.Report) error{"table": audit.Table}}
}

// A finding has fields that are not printed.
func TestFindingsArePrinted(t *testing.T) {
	leftover := audit.Pod{Pod: taskpod.Pod{Name: "left", Phase: "Failed", Labels: map[string]string{
		"kubernetes_pod_operator": "True", "dag_id": "d", "task_id": "t", "run_id": "r",
	}}}
	report := audit.Scan(audit.Cluster{Pods: []audit.Pod{leftover}}, audit.Options{})
	results, err := audit.Reclaimer{}.Reclaim(t.Context(), report.Reclaimable())
	if err != nil {
		t.Fatal(err)
	}
	o := output[audit.Results]{kind: "ReclaimReport", format: "jsonpath={.pods[0].name} {.pods[0].reason} {.pods[0].outcome}"}
	print, err := o.printer()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := print(&b, results); err != nil || b.String() != "left Leftover Planned" {
		t.Errorf("%v: %s", err, &b)
	}
}

// Programs read back what was printed, whatever is in it.
func TestOutputIsReadBack(t *testing.T) {
	for _, word := range []string{"alpha", "<script>alert(1)</script>", "no", "1e3", "'\"&\\", "- a: b\n", "{{.}}", "ü\u2028\t"} {
		want := audit.Report{
			Time: time.Date(2023, 3, 8, 9, 34, 0, 123, time.UTC), Pods: 3,
			Environments: []audit.Environment{{Name: word, Live: 3}},
			Collisions:   []audit.Collision{{Namespace: word, Pods: []audit.Ref{{Name: word, Created: time.Unix(1e9, 0).UTC()}}, Environments: []string{word}}},
			Leftovers:    []audit.Finding{}, Orphans: []audit.Finding{},
			UnreadableClaims: []string{word},
		}
		for format, read := range map[string]func([]byte, any) error{
			"json": json.Unmarshal, "yaml": func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
		} {
			o := reports(format)
			print, err := o.printer()
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			var got audit.Report
			if err := print(&b, want); err != nil {
				t.Fatal(err)
			}
			if err := read(b.Bytes(), &got); err != nil {
				t.Errorf("%s: %v\n%s", format, err, &b)
			}
			if diff := cmp.Diff(want.Environments, got.Environments) + cmp.Diff(want.Collisions, got.Collisions) + cmp.Diff(want.UnreadableClaims, got.UnreadableClaims) + cmp.Diff(want.Time, got.Time); diff != "" {
				t.Errorf("%s: %s\n%s", format, diff, &b)
			}
			if !strings.Contains(b.String(), "AuditReport") || !strings.Contains(b.String(), "solepod.io/v1alpha1") {
				t.Errorf("%s has no kind: %s", format, &b)
			}
		}
	}
}

func TestOutputFormats(t *testing.T) {
	results := check.Results{Checks: []check.Result{
		{Name: "replicas", Status: check.OK}, {Name: "rbac", Status: check.Failed}, {Name: "spread", Status: check.Warning},
	}}
	for format, want := range map[string]string{
		`jsonpath={.checks[?(@.status=="failed")].name}`: "rbac",
		`go-template={{range .checks}}{{.name}} {{end}}`: "replicas rbac spread ",
		`jsonpath={.kind}`: "CheckReport",
		`xml`:              `--output "xml": want one of go-template=..., json, jsonpath=..., table, yaml`,
		`jsonpath={`:       `--output "jsonpath={": error parsing jsonpath {, unclosed action`,
		`go-template={{`:   `--output "go-template={{": error parsing template`,
	} {
		o := output[check.Results]{kind: "CheckReport", format: format, formats: map[string]func(io.Writer, check.Results) error{"table": check.Table}}
		var b bytes.Buffer
		print, err := o.printer()
		if err == nil {
			err = print(&b, results)
		}
		if err != nil {
			b.WriteString(err.Error())
		}
		if got := b.String(); got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s\nwant %s", format, got, want)
		}
	}
}
