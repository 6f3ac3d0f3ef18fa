package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/solepod/solepod/pkg/policy"
)

const head = "apiVersion: solepod.io/v1alpha1\nkind: Configuration\n"

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "solepod.yaml")
	if err := os.WriteFile(file, []byte(head+"injection: Require\nenvironmentLabel: example.com/airflow\nretries: Supersede\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Injection, want.EnvironmentLabel, want.Retries = InjectionRequire, "example.com/airflow", RetriesSupersede
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(policy.Settings{EnvironmentLabel: "example.com/airflow", RequireDeclared: true, SupersedeRetries: true}, got.Policy()); diff != "" {
		t.Error(diff)
	}
}

func TestEnvironments(t *testing.T) {
	c, err := Parse([]byte(head + `
environments:
  - name: old
    users: [airflow@example.com]
  - name: new
    serviceAccounts: [airflow/worker]
    groups: [data]
foreignAccess: Audit
claims: {patience: 0s}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Environments) != 2 || c.Environments[0].Users[0] != "airflow@example.com" {
		t.Errorf("%+v", c)
	}
	if c.AccessEnforcement() != EnforcementAudit || c.Claims.Patience.Duration != 0 {
		t.Errorf("%+v", c)
	}
}

// In a rollout that denies nothing, foreign access is not denied either.
func TestAccessEnforcement(t *testing.T) {
	for content, want := range map[string]Enforcement{
		"":                     EnforcementDeny,
		"enforcement: Warn\n":  EnforcementWarn,
		"enforcement: Audit\n": EnforcementAudit,
		"enforcement: Warn\nforeignAccess: Audit\n": EnforcementAudit,
	} {
		c, err := Parse([]byte(head + content))
		if got := c.AccessEnforcement(); err != nil || got != want {
			t.Errorf("%q: %s, %v", content, got, err)
		}
	}
}

// YAML 1.1 reads an unquoted Off as false.
func TestOffNeedsNoQuotes(t *testing.T) {
	for _, off := range []string{"Off", `"Off"`} {
		c, err := Parse([]byte(head + "injection: " + off + "\nforeignAccess: " + off + "\n"))
		if err != nil || c.Injection != InjectionOff || c.ForeignAccess != ForeignAccessOff {
			t.Errorf("%s: %q, %q, %v", off, c.Injection, c.ForeignAccess, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	empty, err := Parse([]byte(head))
	if err != nil {
		t.Fatal(err)
	}
	none, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(empty, none); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(policy.Settings{EnvironmentLabel: "airflow-environment"}, none.Policy()); diff != "" {
		t.Error(diff)
	}
}

func TestString(t *testing.T) {
	got := Default().String()
	for _, want := range []string{`"environmentLabel":"airflow-environment"`, `"claims":{"patience":"1s"}`} {
		if !strings.Contains(got, want) || strings.Contains(got, "\n") {
			t.Errorf("%s lacks %s, or is not one line", got, want)
		}
	}
}

func TestErrorsNameFieldValueAndCure(t *testing.T) {
	for content, wants := range map[string][]string{
		head + "injektion: Stamp\n":                                                     {`unknown field "injektion"`},
		head + "injection: stamp\n":                                                     {`injection: Unsupported value: "stamp": supported values: "Off", "Stamp", "Require"`},
		head + "enforcement: Ignore\n":                                                  {`enforcement: Unsupported value: "Ignore": supported values: "Deny", "Warn", "Audit"`},
		head + "disclosure: none\n":                                                     {`disclosure: Unsupported value: "none": supported values: "Full", "Discreet"`},
		head + "onError: Retry\n":                                                       {`onError: Unsupported value: "Retry": supported values: "Deny", "Allow"`},
		head + "environmentLabel: a b\n":                                                {`environmentLabel: Invalid value: "a b"`},
		head + "environmentLabel: dag_id\n":                                             {`environmentLabel: Invalid value: "dag_id": has another meaning; choose another key`},
		head + "injection: x\nonError: y\n":                                             {"injection: ", "onError: "},
		head + "injection: Stamp\ninjection: Off\n":                                     {`key "injection" already set in map`},
		head + "selectorIncludesLabels: true\n":                                         {`unknown field "selectorIncludesLabels"`},
		head + "environmentLabel: solepod.io/declared\n":                                {"has another meaning; choose another key"},
		head + "environmentLabel: solepod.io/claim\n":                                   {`environmentLabel: Invalid value: "solepod.io/claim": has another meaning; choose another key`},
		head + "environmentLabel: solepod.io/x\n":                                       {`environmentLabel: Invalid value: "solepod.io/x": has another meaning; choose another key`},
		head + "retries: Replace\n":                                                     {`retries: Unsupported value: "Replace": supported values: "Allow", "Supersede"`},
		head + "foreignAccess: Never\n":                                                 {`foreignAccess: Unsupported value: "Never": supported values: "Deny", "Audit", "Off"`},
		head + "claims: {patience: 6s}\n":                                               {`claims.patience: Invalid value: "6s": must be from 0s to 5s`},
		head + "claims: {inFlight: 6s}\n":                                               {`unknown field "inFlight"`},
		head + "environments: [{}]\n":                                                   {`environments[0].name: Required value: must not be empty`},
		head + "environments: [{name: a b}]\n":                                          {`environments[0].name: Invalid value: "a b"`},
		head + "environments: [{name: a}, {name: a}]\n":                                 {`environments[1].name: Duplicate value: "a"`},
		head + "environments: [{name: a, users: [u]}, {name: b, users: [u]}]\n":         {`environments[1].users[0]: Duplicate value: "u"`},
		head + "environments: [{name: a, groups: [g]}, {name: b, groups: [g, \"\"]}]\n": {`environments[1].groups[0]: Duplicate value: "g"`, `environments[1].groups[1]: Required value`},
		head + "environments: [{name: a, serviceAccounts: [airflow]}]\n":                {`environments[0].serviceAccounts[0]: Invalid value: "airflow": must be namespace/name`},
		head + "environments: [{name: a, users: [\"r/*/x\"]}]\n":                        {`environments[0].users[0]: Invalid value: "r/*/x": may have one * only, at the end`},
		head + "environments: [{name: a, users: [\"r/**\"]}]\n":                         {`environments[0].users[0]: Invalid value: "r/**": may have one * only, at the end`},
		head + "environments: [{name: a, users: [\"*\"]}]\n":                            {`environments[0].users[0]: Invalid value: "*": matches all users; put the start of the names before the *`},
		head + "environments: [{name: a, users: [\"r/*\"]}, {name: b, users: [r/x]}]\n": {`environments[1].users[0]: Invalid value: "r/x": matches users that environments[0].users[0], "r/*", also matches; let the users of two environments differ`},
		head + "environments: [{name: a, users: [r/x]}, {name: b, users: [\"r/*\"]}]\n": {`environments[1].users[0]: Invalid value: "r/*": matches users that environments[0].users[0], "r/x", also matches`},
		"kind: Configuration\n":                                                         {`apiVersion: Unsupported value: "": supported values: "solepod.io/v1alpha1"`},
		"apiVersion: solepod.io/v1\nkind: Config\n":                                     {`apiVersion: Unsupported value: "solepod.io/v1"`, `kind: Unsupported value: "Config": supported values: "Configuration"`},
		"":  {"apiVersion: Unsupported value"},
		"]": {"yaml"},
	} {
		_, err := Parse([]byte(content))
		if err == nil {
			t.Errorf("%q: no error", content)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v\nwant %s", content, err, want)
			}
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "absent.yaml")); err == nil || !strings.Contains(err.Error(), "absent.yaml") {
		t.Errorf("absent file: %v", err)
	}
}
