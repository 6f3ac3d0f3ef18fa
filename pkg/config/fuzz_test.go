package config

import (
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// FuzzParse reads anything. What is accepted is what the log of a start shows,
// and can be copied from there into a file.
func FuzzParse(f *testing.F) {
	for _, content := range []string{
		"", "null", "[]", "]", "{{", "apiVersion: 7", head, head + head, head + "---\n" + head,
		head + "injection: Off\nforeignAccess: off\nenforcement: Warn\nretries: Supersede\ndisclosure: Discreet\nonError: Allow\n",
		head + "selectorIncludesLabels: false\nenvironmentLabel: example.com/airflow\nclaims: {patience: 1.5s}\n",
		head + "claims: {patience: -1ns}\n", head + "claims: {patience: 99999999999h}\n", head + "claims: {patience: null}\n", head + "claims: {patience: 7}\n",
		head + "environments: [{name: alpha, users: [u], groups: [g], serviceAccounts: [airflow/worker], selectorIncludesLabels: false}, {name: beta}]\n",
		head + "environments: []\n", head + "environments: [null]\n", head + "environments: [{name: on, users: [7, null, !!binary gA==]}]\n",
		head + "environments: &a [*a]\n", head + "<<: {injection: Require}\n", head + "injection: \"false\"\n",
		head + "environments: [{name: a, users: [\"\\0\", \"\\u2028\", \"\\ud800\"]}]\n",
		strings.Repeat("[", 200), strings.Repeat("a: {", 200),
	} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := Parse(content)
		if err != nil {
			return
		}
		line := c.String()
		if strings.ContainsFunc(line, unicode.IsControl) {
			t.Errorf("not one line: %q", line)
		}
		printed, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, again := range []string{line, string(printed)} {
			got, err := Parse([]byte(again))
			if diff := cmp.Diff(c, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Errorf("%s\n%v\n%s", again, err, diff)
			}
		}
		settings := c.Policy()
		if settings.EnvironmentLabel == "" || c.AccessEnforcement() == "" {
			t.Errorf("%+v", c)
		}
		for name := range settings.SelectorExceptions {
			if problems := validation.IsValidLabelValue(name); name == "" || len(problems) > 0 {
				t.Errorf("%q cannot be an environment: %q", name, problems)
			}
		}
	})
}
