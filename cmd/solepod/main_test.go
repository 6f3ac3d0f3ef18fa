package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
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
		"--kubeconfig", "--config", "--system-namespace", "--webhook-bind-address", "--cert-dir",
		"--cert-secret", "--cert-lifetime", "--client-ca-file", "--client-allowed-names",
		"--metrics-bind-address", "--health-probe-bind-address", "--leader-elect", "--max-staleness", "--log-level", "--log-format",
	} {
		if !strings.Contains(help, flag+" ") {
			t.Errorf("%s is not in\n%s", flag, help)
		}
	}
}

// Manifests of before the flag was renamed go on to work.
func TestFormerNameOfSystemNamespace(t *testing.T) {
	cmd := newServeCommand()
	if err := cmd.ParseFlags([]string{"--namespace=elsewhere"}); err != nil || cmd.Flag("system-namespace").Value.String() != "elsewhere" {
		t.Errorf("%v: %s", err, cmd.Flag("system-namespace").Value)
	}
	if cmd := newServeCommand(); strings.Contains(cmd.UsageString(), "--namespace ") || cmd.Flag("system-namespace").DefValue != "solepod-system" {
		t.Error(cmd.UsageString())
	}
}

func TestVersion(t *testing.T) {
	if out, err := run(t, "version"); err != nil || !strings.HasPrefix(out, "solepod devel go") {
		t.Errorf("%q, %v", out, err)
	}
	out, err := run(t, "version", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got build
	if err := json.Unmarshal([]byte(out), &got); err != nil || got != newBuild("devel", nil) {
		t.Errorf("%s: %+v, %v", out, got, err)
	}
}

// A test's binary has no commit.
func TestVersionHasTheCommit(t *testing.T) {
	const host = runtime.GOOS + "/" + runtime.GOARCH
	settings := []debug.BuildSetting{
		{Key: "vcs", Value: "git"},
		{Key: "vcs.revision", Value: "fd818b86"},
		{Key: "vcs.time", Value: "2026-11-24T01:01:09Z"},
	}
	for name, c := range map[string]struct {
		settings   []debug.BuildSetting
		text, json string
	}{
		"no checkout": {nil, "v0.1.0 %s " + host, `{"version":"v0.1.0","go":"%s","platform":"` + host + `"}`},
		"a commit": {
			append(slices.Clone(settings), debug.BuildSetting{Key: "vcs.modified", Value: "false"}),
			"v0.1.0 commit fd818b86 of 2026-11-24T01:01:09Z %s " + host,
			`{"version":"v0.1.0","commit":"fd818b86","date":"2026-11-24T01:01:09Z","go":"%s","platform":"` + host + `"}`,
		},
		"changed since": {
			append(slices.Clone(settings), debug.BuildSetting{Key: "vcs.modified", Value: "true"}),
			"v0.1.0 commit fd818b86-dirty of 2026-11-24T01:01:09Z %s " + host,
			`{"version":"v0.1.0","commit":"fd818b86","date":"2026-11-24T01:01:09Z","modified":true,"go":"%s","platform":"` + host + `"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuild("v0.1.0", &debug.BuildInfo{Settings: c.settings})
			for output, want := range map[string]string{"text": "solepod " + c.text, "json": c.json} {
				var got bytes.Buffer
				want = fmt.Sprintf(want, runtime.Version()) + "\n"
				if err := b.print(&got, output); err != nil || got.String() != want {
					t.Errorf("%q, %v\nwant %q", got.String(), err, want)
				}
			}
		})
	}
}

func TestBadInputIsNamed(t *testing.T) {
	typo := filepath.Join(t.TempDir(), "typo.yaml")
	if err := os.WriteFile(typo, []byte("apiVersion: solepod.io/v1alpha1\nkind: Configuration\nretrys: Allow\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A command line that is complete, to which a mistake is added.
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("{apiVersion: v1, kind: Config, clusters: [{name: x, cluster: {server: 'https://localhost:1'}}], contexts: [{name: x, context: {cluster: x}}], current-context: x}"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve := func(args ...string) []string {
		return append([]string{"serve", "--cert-secret=x", "--kubeconfig=" + kubeconfig}, args...)
	}
	for want, args := range map[string][]string{
		`unknown command "sevre"`:                             {"sevre"},
		"unknown flag: --certdir":                             {"serve", "--certdir=x"},
		`unknown command "x"`:                                 {"serve", "x"},
		`unknown field "retrys"`:                              serve("--config=" + typo),
		"no such file or directory":                           serve("--config=/absent.yaml"),
		`--log-level "loud"`:                                  serve("--log-level=loud"),
		`--output "xml"`:                                      {"version", "--output=xml"},
		`--log-format "xml"`:                                  serve("--log-format=xml"),
		`"9443": want host:port`:                              serve("--webhook-bind-address=9443"),
		`":http": want a port`:                                serve("--webhook-bind-address=:http"),
		`":70000": want a port from 1`:                        serve("--webhook-bind-address=:70000"),
		"finding the API server (--kubeconfig): stat /absent": serve("--kubeconfig=/absent"),
		"at least one of the flags in the group [cert-dir cert-secret] is required": {"serve"},
		"[namespace system-namespace] were all set":                                 serve("--namespace=a", "--system-namespace=b"),
		"[cert-dir cert-secret] were all set":                                       serve("--cert-dir=/"),
		"--cert-dir: open /absent/tls.crt":                                          {"serve", "--kubeconfig=" + kubeconfig, "--cert-dir=/absent"},
		"--cert-lifetime: 1s: want at least 30s":                                    serve("--cert-lifetime=1s"),
		"--max-staleness 1s: want at least 5s":                                      serve("--max-staleness=1s"),
		"--client-ca-file: open /absent":                                            serve("--client-ca-file=/absent"),
		"--reclaim-older-than -1s: want 0 or more":                                  serve("--reclaim-older-than=-1s"),
		`context "absent" does not exist`:                                           {"check", "--kubeconfig=" + kubeconfig, "--context=absent"},
		`--output "xml": want one of go-template=..., html, json`:                   {"audit", "--output=xml"},
		"--older-than -1s: want 0 or more":                                          {"audit", "--older-than=-1s"},
		"--dry-run=false: want --yes":                                               {"reclaim", "--dry-run=false"},
		"--rate 0: want more than 0":                                                {"reclaim", "--rate=0"},
		`"x": want NAMESPACE/POD`:                                                   {"reclaim", "x"},
		"--client-allowed-names: want --client-ca-file":                             serve("--client-allowed-names=x"),
	} {
		if _, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v\nwant %s", args, err, want)
		}
	}
}
