package chart_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/solepod/solepod/test/chart"
	"github.com/solepod/solepod/test/controlplane"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	paths, err := controlplane.Build(t.Context(), os.Stderr, controlplane.Promtool)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), paths[controlplane.Promtool], args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

type rule struct {
	Alert string `json:"alert,omitempty"`
	Name  string `json:"record,omitempty"`
	Expr  string `json:"expr"`

	Annotations map[string]string `json:"annotations,omitempty"`
}

type group struct {
	Name  string `json:"name"`
	Rules []rule `json:"rules"`
}

type groups struct {
	Groups []group `json:"groups"`
}

// Each alert fires with its text when it should, and only then.
func TestAlerts(t *testing.T) {
	promtool(t, "test", "rules", "alerts.yaml")
	var tests struct {
		Tests []struct {
			Tests []struct {
				Alert string `json:"alertname"`
				Fires []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	read(t, "alerts.yaml", &tests)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, group := range tests.Tests {
		for _, test := range group.Tests {
			if len(test.Fires) > 0 {
				fires[test.Alert] = true
			} else {
				silent[test.Alert] = true
			}
		}
	}
	docs, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(string(docs), -1) {
		anchor := strings.ReplaceAll(strings.ToLower(heading[1]), " ", "-") // as GitHub makes them
		anchors[strings.ReplaceAll(anchor, ",", "")] = true
	}
	for _, r := range alerts(t) {
		// The chart replaces main by its version: see TestRender.
		anchor, ok := strings.CutPrefix(r.Annotations["runbook_url"], "https://github.com/solepod/solepod/blob/main/docs/operations.md#")
		if !ok || !anchors[anchor] || !strings.Contains(anchor, strings.ToLower(r.Alert)) {
			t.Errorf("%s: its runbook_url is %q", r.Alert, r.Annotations["runbook_url"])
		}
		if !regexp.MustCompile(`(?m)^### .*\b` + r.Alert + `\b`).Match(docs) {
			t.Errorf("docs/operations.md does not say what to do about %s", r.Alert)
		}
		if !fires[r.Alert] || !silent[r.Alert] {
			t.Errorf("%s: is tested to fire %t, to be silent %t", r.Alert, fires[r.Alert], silent[r.Alert])
		}
	}
}

func alerts(t *testing.T) []rule {
	t.Helper()
	var rules groups
	read(t, filepath.Join("..", "..", chart.Path, "files", "alerts.yaml"), &rules)
	return rules.Groups[0].Rules
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(content, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The dashboard is what Grafana imports, and Prometheus understands it.
func TestDashboard(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", chart.Path, "files", "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID           string `json:"uid"`
		SchemaVersion int    `json:"schemaVersion"`
		Panels        []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			GridPos struct{ X, Y, W, H int }
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.UID == "" || dashboard.SchemaVersion < 39 || len(dashboard.Panels) == 0 {
		t.Errorf("%+v", dashboard)
	}
	type cell struct{ x, y int }
	taken, rules := map[cell]string{}, group{Name: "dashboard"}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := cell{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := taken[at]; ok || at.x >= 24 {
					t.Fatalf("%q is where %q is, or beyond the edge: %+v", p.Title, other, at)
				}
				taken[at] = p.Title
			}
		}
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("%q has the id %d of another one, or shows nothing", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			rules.Rules = append(rules.Rules, rule{Name: "dashboard", Expr: strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")})
		}
	}
	content, err = yaml.Marshal(groups{[]group{rules}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
	known(t, append(rules.Rules, alerts(t)...))
}

// known fails the test for metrics of solepod that nothing in it makes.
func known(t *testing.T, rules []rule) {
	t.Helper()
	var source strings.Builder
	root := os.DirFS(filepath.Join("..", ".."))
	for _, folder := range []string{"pkg", "certs"} {
		err := fs.WalkDir(root, folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			content, err := fs.ReadFile(root, path)
			source.Write(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := false
	for _, r := range rules {
		for _, name := range regexp.MustCompile(`\bsolepod_[a-z_]+`).FindAllString(r.Expr, -1) {
			seen = true
			if !strings.Contains(source.String(), `"`+strings.TrimSuffix(name, "_bucket")+`"`) {
				t.Errorf("there is no metric %s: %s", name, r.Expr)
			}
		}
	}
	if !seen {
		t.Error("there are no metrics in the rules")
	}
}
