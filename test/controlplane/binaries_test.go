package controlplane

import (
	"cmp"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Binaries that exist are not compiled.
func TestFind(t *testing.T) {
	_, known := known(t)
	oldest, newest := known[0], known[len(known)-1]
	// release is a folder of the store.
	release := func(version string) string { return "store/" + version + "-" + runtime.GOOS + "-" + runtime.GOARCH }
	const executable, inert, empty = "executable", "inert", "empty"
	for name, test := range map[string]struct {
		variable string            // KUBERNETES_VERSION
		files    map[string]string // in KUBEBUILDER_ASSETS, the store, and the cache of the newest version
		binary   Binary
		want     string // one of them, or "" if the binary must be compiled
		unusable []string
	}{
		"KUBEBUILDER_ASSETS has it": {
			files:  map[string]string{"assets/etcd": executable, release(newest+".2") + "/etcd": executable, "cache/etcd": executable},
			binary: Etcd, want: "assets/etcd",
		},
		"KUBEBUILDER_ASSETS has only another": {
			files:  map[string]string{"assets/kube-apiserver": executable, release(newest+".2") + "/etcd": executable, "cache/etcd": executable},
			binary: Etcd, want: release(newest+".2") + "/etcd",
		},
		"KUBEBUILDER_ASSETS may have any version": {
			variable: "1.2", files: map[string]string{"assets/etcd": executable},
			binary: Etcd, want: "assets/etcd",
		},
		"tools come from neither": {
			files:  map[string]string{"assets/helm": executable, release(newest+".2") + "/helm": executable},
			binary: Helm,
		},
		"the store lacks it, the cache has it": {
			files:  map[string]string{release(newest+".2") + "/kube-apiserver": executable, "cache/etcd": executable},
			binary: Etcd, want: "cache/etcd",
		},
		"the store has a newer patch": {
			files:  map[string]string{release(newest+".9") + "/etcd": executable, release(newest+".10") + "/etcd": executable},
			binary: Etcd, want: release(newest+".10") + "/etcd",
		},
		"the store has another minor version": {
			files: map[string]string{release(oldest+".2") + "/etcd": executable}, binary: Etcd,
		},
		"an older minor version is wanted": {
			variable: oldest, files: map[string]string{release(oldest+".2") + "/etcd": executable, release(newest+".2") + "/etcd": executable},
			binary: Etcd, want: release(oldest+".2") + "/etcd",
		},
		"the store is of other machines": {
			files:  map[string]string{"store/" + newest + ".2-plan9-" + runtime.GOARCH + "/etcd": executable, "store/" + newest + ".2-" + runtime.GOOS + "-mips/etcd": executable},
			binary: Etcd,
		},
		"a file that is not executable": {
			files:  map[string]string{release(newest+".2") + "/etcd": inert},
			binary: Etcd, unusable: []string{release(newest+".2") + "/etcd"},
		},
		"a file that is empty": {
			files:  map[string]string{release(newest+".2") + "/etcd": empty},
			binary: Etcd, unusable: []string{release(newest+".2") + "/etcd"},
		},
		"a folder in place of the file": {
			files:  map[string]string{release(newest+".2") + "/etcd/etcd": executable},
			binary: Etcd, unusable: []string{release(newest+".2") + "/etcd"},
		},
		"an older patch is whole": {
			files:  map[string]string{release(newest+".2") + "/etcd": empty, release(newest+".1") + "/etcd": executable},
			binary: Etcd, want: release(newest+".1") + "/etcd",
		},
		"folders that are no release": {
			files: map[string]string{"store/" + newest + "/etcd": executable, "store/etcd": executable}, binary: Etcd,
		},
		"nothing": {binary: Etcd},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("KUBEBUILDER_ASSETS", filepath.Join(dir, "assets"))
			t.Setenv("XDG_CACHE_HOME", dir)
			t.Setenv("HOME", dir)
			t.Setenv(VersionVariable, "")
			absent, err := find(t.Context(), Etcd)
			if err != nil || absent.found || absent.module == "" {
				t.Fatalf("%+v, %v", absent, err)
			}
			folders := map[string]string{"assets": filepath.Join(dir, "assets"), "store": storeAt(t, dir), "cache": filepath.Dir(absent.path)}
			path := func(file string) string {
				folder, rest, _ := strings.Cut(file, "/")
				return filepath.Join(folders[folder], rest)
			}
			for file, kind := range test.files {
				if err := os.MkdirAll(filepath.Dir(path(file)), 0o700); err != nil {
					t.Fatal(err)
				}
				content, mode := "#!/bin/sh\n", os.FileMode(0o700)
				switch kind {
				case inert:
					mode = 0o600
				case empty:
					content = ""
				}
				if err := os.WriteFile(path(file), []byte(content), mode); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv(VersionVariable, test.variable)

			got, err := find(t.Context(), test.binary)
			if err != nil {
				t.Fatal(err)
			}
			if got.found != (test.want != "") || got.found && got.path != path(test.want) {
				t.Errorf("found %t, %s; want %q", got.found, got.path, test.want)
			}
			var unusable []string
			for _, file := range test.unusable {
				unusable = append(unusable, path(file))
			}
			if !slices.Equal(got.unusable, unusable) {
				t.Errorf("unusable are %q, want %q", got.unusable, unusable)
			}
		})
	}
}

// storeAt has the tests and setup-envtest use a store below a folder, and returns
// the folder of its releases.
func storeAt(t *testing.T, dir string) string {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", dir)
	releases, err := envtest.SetupEnvtestDefaultBinaryAssetsDirectory()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(releases, dir) { // another system than Linux, and the user's own store
		t.Skipf("NOT TESTED: the store is at %s, whatever XDG_DATA_HOME is", releases)
	}
	return releases
}

// The line on progress names what is used, and the message of a build what is not.
func TestSources(t *testing.T) {
	_, known := known(t)
	newest := known[len(known)-1]
	t.Setenv("KUBEBUILDER_ASSETS", "")
	t.Setenv(VersionVariable, "")
	releases := storeAt(t, t.TempDir())
	folder := filepath.Join(releases, newest+".77-"+runtime.GOOS+"-"+runtime.GOARCH)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, b := range []Binary{Etcd, KubeAPIServer} {
		if err := os.WriteFile(filepath.Join(folder, string(b)), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	kwok, err := find(t.Context(), Kwok)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sources(t.Context(), []Binary{Etcd, Kwok, KubeAPIServer})
	if err != nil {
		t.Fatal(err)
	}
	want := "etcd, kube-apiserver " + newest + ".77 from " + folder + "; kwok from " + filepath.Dir(kwok.path)
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A start compiles missing binaries, and the demo reports it.
func TestMissing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KUBEBUILDER_ASSETS", dir)
	t.Setenv("XDG_CACHE_HOME", dir)
	t.Setenv("HOME", dir)
	t.Setenv(VersionVariable, "")
	storeAt(t, dir)
	for _, step := range []struct {
		has  Binary
		want []Binary
	}{
		{"", []Binary{Etcd, KubeAPIServer}},
		{Etcd, []Binary{KubeAPIServer}},
		{KubeAPIServer, nil},
	} {
		if step.has != "" {
			if err := os.WriteFile(filepath.Join(dir, string(step.has)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := Missing(t.Context(), Options{}); err != nil || !slices.Equal(got, step.want) {
			t.Errorf("with %q, %q are missing, want %q: %v", step.has, got, step.want, err)
		}
	}
}

// What neither KUBEBUILDER_ASSETS nor the store has is compiled, and runs.
func TestBuild(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", t.TempDir())
	t.Setenv(VersionVariable, "")
	storeAt(t, t.TempDir())
	for b, args := range map[Binary]struct {
		args []string
		want string
	}{
		Etcd:     {[]string{"--version"}, "etcd Version: 3."},
		Helm:     {[]string{"version", "--short"}, "v4."},
		Promtool: {[]string{"--version"}, "promtool, version"},
	} {
		paths, err := Build(t.Context(), os.Stderr, b)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), paths[b], args.args...).CombinedOutput(); err != nil || !strings.Contains(string(out), args.want) {
			t.Errorf("%s: %v: %s, want %s", paths[b], err, out, args.want)
		}
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

// KUBERNETES_VERSION selects the version that is built, and no other.
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

// The built binaries report the requested version.
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
	compile := "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo example.com/pkg/$i >&2; done; "
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
