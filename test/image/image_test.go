//go:build image

// Package image builds the image without a registry, inspects it, and runs it with the
// restrictions of the manifests: as an unprivileged user, on a root that is
// mounted read-only.
package image

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/solepod/solepod/test/controlplane"
)

const user = "65532"

// machines are the platforms of a release.
var machines = map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}

// tools are what this takes, by the Debian package that has it.
var tools = map[string][]string{
	"buildah":    {"buildah"},
	"coreutils":  {"chroot"},
	"git":        {"git"},
	"make":       {"make"},
	"util-linux": {"unshare", "mount"},
}

func TestMain(m *testing.M) {
	var missing []string
	for pkg, names := range tools {
		for _, name := range names {
			if _, err := exec.LookPath(name); err != nil && !slices.Contains(missing, pkg) {
				missing = append(missing, pkg)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		fmt.Fprintln(os.Stderr, "These tests lack tools. On Debian: apt-get install -y --no-install-recommends", strings.Join(missing, " "))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// run runs a program in the repository and returns what it printed.
func run(ctx context.Context, name string, args ...string) (string, error) {
	root, err := controlplane.Repository(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", cmd, err, out, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// build builds the image.
func build(ctx context.Context) (archive, error) {
	if _, err := run(ctx, "make", "image"); err != nil {
		return nil, err
	}
	root, err := controlplane.Repository(ctx)
	if err != nil {
		return nil, err
	}
	return readArchive(filepath.Join(root, "bin", "solepod-image.tar"))
}

// once is what all tests but that of a second build share.
var once = sync.OnceValues(func() (archive, error) { return build(context.Background()) })

func built(t *testing.T) archive {
	t.Helper()
	a, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// binary is the one file of an image.
func (p platform) binary(t *testing.T) []byte {
	t.Helper()
	if len(p.layers) != 1 || len(p.layers[0]) != 1 {
		t.Fatalf("want one layer with one file, got %d layers", len(p.layers))
	}
	f := p.layers[0][0]
	if f.Name != "solepod" || f.FileInfo().Mode() != 0o755 || f.Uid != 0 || f.Gid != 0 {
		t.Errorf("%s %s of %d:%d, want solepod -rwxr-xr-x of 0:0", f.Name, f.FileInfo().Mode(), f.Uid, f.Gid)
	}
	return f.content
}

func TestImage(t *testing.T) {
	commit, err := run(t.Context(), "git", "rev-parse", "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	platforms := built(t).platforms(t)
	for name := range platforms {
		if _, ok := machines[name]; !ok {
			t.Errorf("there is an image for %s", name)
		}
	}
	for name, machine := range machines {
		t.Run(name, func(t *testing.T) {
			p, ok := platforms[name]
			if !ok {
				t.Fatal("there is none")
			}
			if p.Config.User != user+":"+user {
				t.Errorf("it runs as %q", p.Config.User)
			}
			if diff := cmp.Diff([]string{"/solepod"}, p.Config.Entrypoint); diff != "" || len(p.Config.Cmd) > 0 || len(p.Config.Volumes) > 0 {
				t.Errorf("entrypoint: %s\ncommand %q, volumes %v", diff, p.Config.Cmd, p.Config.Volumes)
			}
			binary := p.binary(t)
			checkStatic(t, binary, machine)

			info, err := buildinfo.Read(bytes.NewReader(binary))
			if err != nil {
				t.Fatal(err)
			}
			settings := map[string]string{}
			for _, s := range info.Settings {
				settings[s.Key] = s.Value
			}
			goos, goarch, _ := strings.Cut(name, "/")
			for key, want := range map[string]string{"GOOS": goos, "GOARCH": goarch, "CGO_ENABLED": "0", "-trimpath": "true", "vcs.revision": commit} {
				if settings[key] != want {
					t.Errorf("it was built with %s=%s, want %s", key, settings[key], want)
				}
			}
			labels := p.Config.Labels
			if labels["org.opencontainers.image.revision"] != commit || labels["org.opencontainers.image.source"] != "https://github.com/solepod/solepod" {
				t.Errorf("labels %v, want those of commit %s", labels, commit)
			}
			// The linker's flags are not in the build information with -trimpath.
			if version := labels["org.opencontainers.image.version"]; version == "" || !bytes.Contains(binary, []byte(version)) {
				t.Errorf("labels %v, but the binary does not have that version", labels)
			}
		})
	}
}

// checkStatic fails if a binary needs other files.
func checkStatic(t *testing.T, binary []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != machine {
		t.Errorf("a binary for %s, want %s", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a %s, so it is not static", p.Type)
		}
	}
}

func TestAnotherBuildIsTheSame(t *testing.T) {
	first := built(t)
	again, err := build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := again.digest(t), first.digest(t); got != want {
		t.Errorf("built twice: %s and %s", want, got)
	}
}

func TestSBOM(t *testing.T) {
	if _, err := run(t.Context(), "make", "sbom"); err != nil {
		t.Fatal(err)
	}
	root, err := controlplane.Repository(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(root, "bin", "solepod.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		Format     string `json:"bomFormat"`
		Components []struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"components"`
	}
	if err := json.Unmarshal(content, &bom); err != nil || bom.Format != "CycloneDX" {
		t.Fatalf("%q, %v", bom.Format, err)
	}
	var listed []string
	for _, c := range bom.Components {
		listed = append(listed, c.Name+" "+c.Version)
	}
	slices.Sort(listed)
	if !slices.ContainsFunc(listed, func(c string) bool { return strings.HasPrefix(c, "sigs.k8s.io/controller-runtime v") }) {
		t.Errorf("controller-runtime is not among %q", listed)
	}
	for name, p := range built(t).platforms(t) {
		info, err := buildinfo.Read(bytes.NewReader(p.binary(t)))
		if err != nil {
			t.Fatal(err)
		}
		linked := []string{"std " + info.GoVersion}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			linked = append(linked, m.Path+" "+m.Version)
		}
		slices.Sort(linked)
		if diff := cmp.Diff(linked, listed); diff != "" {
			t.Errorf("%s has other modules than the SBOM (-image +SBOM):\n%s", name, diff)
		}
	}
}

// here is the image for the machine that the tests run on.
func here(t *testing.T) platform {
	t.Helper()
	p, ok := built(t).platforms(t)["linux/"+runtime.GOARCH]
	if !ok {
		t.Fatalf("there is no image for linux/%s to run", runtime.GOARCH)
	}
	return p
}
