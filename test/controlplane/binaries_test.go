package controlplane

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Those who have the binaries need not build them.
func TestKubebuilderAssets(t *testing.T) {
	assets := t.TempDir()
	t.Setenv("KUBEBUILDER_ASSETS", assets)
	mine := filepath.Join(assets, string(Etcd))
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	paths, err := Build(t.Context(), io.Discard, Etcd)
	if err != nil || paths[Etcd] != mine {
		t.Errorf("%v, %v; want %s", paths, err, mine)
	}

	// What the folder lacks comes from the cache, built if need be.
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if paths, err = Build(t.Context(), os.Stderr, Etcd); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), paths[Etcd], "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "etcd Version: 3.") {
		t.Errorf("%s: %v: %s", paths[Etcd], err, out)
	}
}

func TestProgress(t *testing.T) {
	var progress strings.Builder
	compile := "for i in $(seq 20); do echo example.com/pkg/$i >&2; done; "
	if err := runWithProgress(exec.CommandContext(t.Context(), "sh", "-c", compile), &progress, "thing", 20); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"20 packages to compile", "thing: 2 of 20 packages", "thing: 20 of 20 packages", "thing: done"} {
		if !strings.Contains(progress.String(), want) {
			t.Errorf("%q is not in\n%s", want, progress.String())
		}
	}
	err := runWithProgress(exec.CommandContext(t.Context(), "sh", "-c", compile+"echo 'x.go:1:2: undefined: y' >&2; exit 1"), io.Discard, "thing", 20)
	if err == nil || !strings.Contains(err.Error(), "x.go:1:2: undefined: y") {
		t.Errorf("the compiler's message is lost: %v", err)
	}
}
