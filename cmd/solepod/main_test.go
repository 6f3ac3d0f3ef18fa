package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a command line and returns what it printed and its error.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

// Charts and tools rely on these.
func TestFlagsAreStable(t *testing.T) {
	help, err := run(t, "serve", "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{
		"--kubeconfig", "--config", "--namespace", "--webhook-bind-address", "--cert-dir",
		"--metrics-bind-address", "--health-probe-bind-address", "--leader-elect", "--log-level", "--log-format",
	} {
		if !strings.Contains(help, flag+" ") {
			t.Errorf("%s is not in\n%s", flag, help)
		}
	}
}

func TestVersion(t *testing.T) {
	if out, err := run(t, "version"); err != nil || !strings.HasPrefix(out, "solepod devel go") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestBadInputIsNamed(t *testing.T) {
	typo := filepath.Join(t.TempDir(), "typo.yaml")
	if err := os.WriteFile(typo, []byte("apiVersion: solepod.io/v1alpha1\nkind: Configuration\nretrys: Allow\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		`unknown command "sevre"`:                             {"sevre"},
		"unknown flag: --certdir":                             {"serve", "--certdir=x"},
		`unknown command "x"`:                                 {"serve", "x"},
		`unknown field "retrys"`:                              {"serve", "--config=" + typo},
		"no such file or directory":                           {"serve", "--config=/absent.yaml"},
		`--log-level "loud"`:                                  {"serve", "--log-level=loud"},
		`--log-format "xml"`:                                  {"serve", "--log-format=xml"},
		`"9443": want host:port`:                              {"serve", "--webhook-bind-address=9443"},
		`":http": want a port`:                                {"serve", "--webhook-bind-address=:http"},
		`":70000": want a port from 1`:                        {"serve", "--webhook-bind-address=:70000"},
		"finding the API server (--kubeconfig): stat /absent": {"serve", "--kubeconfig=/absent"},
	} {
		if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v\nwant %s", args, err, want)
		}
	}
}
