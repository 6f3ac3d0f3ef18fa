package faults

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/solepod/solepod/test/controlplane"
	"github.com/solepod/solepod/test/solepod"
)

// oldRevision is the version that runs along with today's: the last commit before
// there was a chart. Set it to the last release once there is one.
const oldRevision = "6b015bb"

// old builds solepod as it was, of today's modules, which are built already.
func old(t *testing.T) string {
	t.Helper()
	root, err := controlplane.Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.CommandContext(t.Context(), "git", "-C", root, "cat-file", "-e", oldRevision+"^{commit}").Run(); err != nil {
		t.Skipf("NOT TESTED: this repository does not have the commit %s of an old version (%v); git fetch --unshallow gets it", oldRevision, err)
	}
	dir := t.TempDir()
	for _, line := range []string{
		"git -C " + root + " archive " + oldRevision + " | tar -x -C " + dir,
		"cd " + dir + " && go build -modfile=" + root + "/go.mod -o old ./cmd/solepod",
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	return filepath.Join(dir, "old")
}

// While solepod is upgraded, replicas of two versions decide on pods of the
// same tasks.
func TestVersionsSideBySide(t *testing.T) {
	const rounds, creates = 20, 16
	before := old(t)

	t.Run("a race", func(t *testing.T) {
		now, err := solepod.Binary(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g := solepod.Run(t, plane, solepod.Options{Replicas: 4, Binaries: []string{before, now}})
		clients := solepod.Airflows(t, plane, jobs)
		for round := range rounds {
			run := fmt.Sprintf("versions-%d", round)
			unique(t, run, race(t, clients, run, creates), 1, "403 DuplicateEnvironment", "403 DuplicateTry", "409 InFlight")
			held(t, pod(run, ""), podsOf(t, run)...)
		}
		for i, served := range g.Served() {
			if served == 0 {
				t.Errorf("replica %d has seen nothing", i)
			}
		}
	})
	// An unknown field could be a restriction.
	t.Run("the configuration of a newer version", func(t *testing.T) {
		config := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(config, []byte("apiVersion: solepod.io/v1alpha1\nkind: Configuration\nfieldToCome: x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), before, "serve", "--cert-dir=/", "--config="+config).CombinedOutput()
		if err == nil || !strings.Contains(string(out), `unknown field "fieldToCome"`) {
			t.Errorf("%v: %s", err, out)
		}
	})
}
