package controlplane

import (
	"cmp"
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
	t.Setenv(VersionVariable, "1.2") // of no interest: nothing is to be built
	paths, err := Build(t.Context(), io.Discard, Etcd)
	if err != nil || paths[Etcd] != mine {
		t.Errorf("%v, %v; want %s", paths, err, mine)
	}
	t.Setenv(VersionVariable, "")

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

// known is the root folder of the source, and the versions in it.
func known(t *testing.T) (root string, known []string) {
	t.Helper()
	root, err := Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if known, err = versions(root); err != nil || len(known) < 2 {
		t.Fatalf("%q, %v", known, err)
	}
	return root, known
}

// KUBERNETES_VERSION chooses what is built, and is not taken for another.
func TestVersions(t *testing.T) {
	root, known := known(t)
	t.Setenv("KUBEBUILDER_ASSETS", "")
	oldest, newest := known[0], known[len(known)-1]
	for name, c := range map[string]struct {
		variable string
		binary   Binary
		want     string
	}{
		"the newest by default":           {"", KubeAPIServer, newest},
		"the one asked for":               {oldest, KubeAPIServer, oldest},
		"kube-controller-manager as well": {oldest, KubeControllerManager, oldest},
		"one etcd for all":                {oldest, Etcd, newest},
		"one kwok for all":                {oldest, Kwok, newest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(VersionVariable, c.variable)
			folder, err := module(root, c.binary)
			if err != nil || filepath.Base(folder) != c.want {
				t.Errorf("%s, %v; want %s", folder, err, c.want)
			}
		})
	}
	for _, version := range known {
		mod, err := os.ReadFile(filepath.Join(root, binariesDir, version, "go.mod"))
		if err != nil || !strings.Contains(string(mod), "k8s.io/kubernetes v"+version+".") {
			t.Errorf("%s pins another: %v\n%s", version, err, mod)
		}
	}
	for _, unknown := range []string{"1.2", "v" + oldest, "."} {
		t.Setenv(VersionVariable, unknown)
		_, err := Build(t.Context(), io.Discard, KubeAPIServer)
		if err == nil || !strings.Contains(err.Error(), strings.Join(known, ", ")) {
			t.Errorf("%q: %v", unknown, err)
		}
	}
}

// What is built is what was asked for, and says so.
func TestVersionBuilt(t *testing.T) {
	if os.Getenv("KUBEBUILDER_ASSETS") != "" {
		t.Skip("KUBEBUILDER_ASSETS decides")
	}
	_, known := known(t)
	want := "Kubernetes v" + cmp.Or(os.Getenv(VersionVariable), known[len(known)-1]) + "."
	for _, b := range []Binary{KubeAPIServer, KubeControllerManager} {
		paths, err := Build(t.Context(), os.Stderr, b)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), paths[b], "--version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s: %v: %s, want %s", b, err, out, want)
		}
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
