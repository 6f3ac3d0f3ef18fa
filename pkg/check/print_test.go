package check

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fatih/color"
	"github.com/google/go-cmp/cmp"
)

func sample() Results {
	return Results{[]Result{
		{Category: "Cluster", Name: "kubernetes", Description: "the API server answers", Status: OK, Detail: "v1.37.2"},
		{Category: "Deployment", Name: "spread", Description: "the replicas run on different nodes", Status: Warning, Detail: "all of them run on the same node", Cure: "Make room.", Docs: docs + "spread"},
		{Category: "Deployment", Name: "configuration", Description: "the configuration can be read", Status: Skipped, Detail: "there is none"},
		{Category: "Webhooks", Name: "webhooks", Description: "both are there", Status: Failed, Detail: "there is no ValidatingWebhookConfiguration solepod", Cure: "Install again.", Docs: docs + "webhooks"},
	}}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (UPDATE_GOLDEN=1 writes it):\n%s", path, diff)
	}
}

func TestTable(t *testing.T) {
	before := color.NoColor
	t.Cleanup(func() { color.NoColor = before })
	for file, plain := range map[string]bool{"table.txt": true, "colours.txt": false} {
		color.NoColor = plain
		var b bytes.Buffer
		if err := Table(&b, sample()); err != nil {
			t.Fatal(err)
		}
		golden(t, file, b.Bytes())
	}
}

// Each check has its section in docs/check.md, in the same order, and nothing
// else has one.
func TestDocs(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("..", "..", "docs", "check.md"))
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, heading := range regexp.MustCompile(`(?m)^### (.*)$`).FindAllStringSubmatch(string(content), -1) {
		got = append(got, heading[1])
	}
	for _, c := range checks(nil) {
		want = append(want, c.name)
		if c.cure == "" || !strings.HasSuffix(c.cure, ".") {
			t.Errorf("the cure of %s is %q", c.name, c.cure)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/check.md has %v, want %v", got, want)
	}
}

func TestResembles(t *testing.T) {
	const key = "airflow-environment"
	for _, typo := range []string{"airflow-enviroment", "airflow_environment", "Airflow-Environment", "airflowenvironment", "airflow-environments"} { //nolint:misspell // so they are meant to be
		if !resembles(typo, key) {
			t.Errorf("%s does not", typo)
		}
	}
	for _, other := range []string{"environment", "airflow", "app.kubernetes.io/name", "kubernetes.io/metadata.name"} {
		if resembles(other, key) {
			t.Errorf("%s does", other)
		}
	}
}

// What this version ships can be compared with, for any namespace and label.
func TestShipped(t *testing.T) {
	hooks, err := shipped("elsewhere", "team/env")
	if err != nil {
		t.Fatal(err)
	}
	if len(hooks) != 6 {
		t.Fatalf("%d hooks", len(hooks))
	}
	for name, h := range hooks {
		if !excludes(h.namespaces, "elsewhere") || h.client.Service.Namespace != "elsewhere" {
			t.Errorf("%s is for %s", name, h.client.Service.Namespace)
		}
	}
}
