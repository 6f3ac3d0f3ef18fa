package controlplane

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/tools/setup-envtest/store"
	envtestversions "sigs.k8s.io/controller-runtime/tools/setup-envtest/versions"
)

// Binary is a program that the tests run: a part of the control plane, or a tool.
type Binary string

// The programs of the control plane.
const (
	KubeAPIServer         Binary = "kube-apiserver"
	Etcd                  Binary = "etcd"
	KubeControllerManager Binary = "kube-controller-manager"
	Kwok                  Binary = "kwok"
	Kubectl               Binary = "kubectl"
)

// The tools, which do not depend on the version of Kubernetes.
const (
	Helm     Binary = "helm"
	Promtool Binary = "promtool"
)

// Binaries lists all of them, the quickest to build first.
func Binaries() []Binary {
	return []Binary{Etcd, Kubectl, Kwok, Helm, Promtool, KubeAPIServer, KubeControllerManager}
}

// VersionVariable is the environment variable that chooses the version of
// Kubernetes, such as 1.34; the newest if it is not set.
const VersionVariable = "KUBERNETES_VERSION"

// binariesDir has a nested module for each version, which its script pin writes.
const binariesDir = "test/controlplane/binaries"

// toolsDir has the nested module of the tools.
const toolsDir = "test/tools"

// versions are those that there is a module for, the oldest first.
func versions(root string) ([]string, error) {
	modules, err := filepath.Glob(filepath.Join(root, binariesDir, "1.*", "go.mod"))
	if err != nil || len(modules) == 0 {
		return nil, errors.Join(err, fmt.Errorf("no versions of Kubernetes in %s", binariesDir))
	}
	var names []string
	for _, module := range modules {
		names = append(names, filepath.Base(filepath.Dir(module)))
	}
	slices.SortFunc(names, func(a, b string) int { // 1.9 goes before 1.10
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	return names, nil
}

// wanted returns the minor version of Kubernetes that the tests run on, and the
// newest that there is a module for.
func wanted(root string) (version, newest string, err error) {
	known, err := versions(root)
	if err != nil {
		return "", "", err
	}
	newest = known[len(known)-1]
	version = cmp.Or(os.Getenv(VersionVariable), newest)
	if !slices.Contains(known, version) {
		return "", "", fmt.Errorf("%s is %q and not one of %s", VersionVariable, version, strings.Join(known, ", "))
	}
	return version, newest, nil
}

// module is the folder of the nested module that a binary is built from. That
// of the newest version has etcd and kwok for all.
func module(root string, b Binary) (string, error) {
	if b.tool() {
		return filepath.Join(root, toolsDir), nil
	}
	version, newest, err := wanted(root)
	if err != nil {
		return "", err
	}
	if !b.ofKubernetes() {
		version = newest
	}
	return filepath.Join(root, binariesDir, version), nil
}

// tool reports whether a binary is not part of the control plane.
func (b Binary) tool() bool { return b == Helm || b == Promtool }

// ofKubernetes reports whether each version of Kubernetes has its own binary.
func (b Binary) ofKubernetes() bool { return b != Etcd && b != Kwok && !b.tool() }

// pkg is the main package, a tool of a nested module.
func (b Binary) pkg() string {
	switch b {
	case Etcd:
		return "go.etcd.io/etcd/server/v3"
	case Kwok:
		return "sigs.k8s.io/kwok/cmd/kwok"
	case Helm:
		return "helm.sh/helm/v4/cmd/helm"
	case Promtool:
		return "github.com/prometheus/prometheus/cmd/promtool"
	default:
		return "k8s.io/kubernetes/cmd/" + string(b)
	}
}

// tags are the build tags.
func (b Binary) tags() string {
	if b == Promtool {
		return "remove_all_sd" // the SDKs of the clouds take most of the time, and rules need none
	}
	return ""
}

// Build makes sure that binaries exist and returns their paths. Those of the
// control plane come from the first of these that has them:
//   - the folder KUBEBUILDER_ASSETS, whatever their version;
//   - the store of setup-envtest, of the minor version that KUBERNETES_VERSION
//     names, the newest patch first;
//   - a folder in the user's cache, where they are built from source if they are
//     not there yet.
//
// Tools come from the user's cache alone. A cold build of kube-apiserver takes
// about five minutes on two cores; progress receives a line for each tenth.
func Build(ctx context.Context, progress io.Writer, binaries ...Binary) (map[Binary]string, error) {
	paths := map[Binary]string{}
	for _, b := range binaries {
		p, err := find(ctx, b)
		if err == nil && !p.found {
			err = build(ctx, progress, b, p)
		}
		if err != nil {
			return nil, fmt.Errorf("building %s: %w", b, err)
		}
		paths[b] = p.path
	}
	return paths, nil
}

// place is where a binary is, or where its build will put it.
type place struct {
	path  string
	found bool
	// release is that of Kubernetes, such as 1.37.2, or "" if it is not known.
	release string
	// module is the folder of the nested module to build it from.
	module string
	// unusable are files of the store that were passed over.
	unusable []string
}

// find returns the place of a binary. It reads the environment variables at each
// call: go test runs a package again only if a variable differs that was read
// during its tests, and TestMain has found the binaries before them.
func find(ctx context.Context, b Binary) (place, error) {
	if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" && !b.tool() {
		path := filepath.Join(assets, string(b))
		if _, err := os.Stat(path); err == nil {
			return place{path: path, found: true}, nil
		}
	}
	root, err := Repository(ctx)
	if err != nil {
		return place{}, err
	}
	p := place{}
	if !b.tool() {
		version, _, err := wanted(root)
		if err != nil {
			return place{}, err
		}
		if p, err = downloaded(ctx, version, b); err != nil || p.found {
			return p, err
		}
	}
	if p.module, err = module(root, b); err != nil {
		return place{}, err
	}
	mod, err := os.ReadFile(filepath.Join(p.module, "go.mod"))
	if err != nil {
		return place{}, err
	}
	folder, err := cacheDir(p.module, mod)
	if err != nil {
		return place{}, err
	}
	p.path = filepath.Join(folder, string(b))
	_, err = os.Stat(p.path)
	p.found = err == nil
	if b.ofKubernetes() {
		release := regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes v(\S+)`).FindSubmatch(mod)
		if release == nil {
			return place{}, fmt.Errorf("no version of k8s.io/kubernetes in %s", p.module)
		}
		p.release = string(release[1])
	}
	return p, nil
}

// downloaded looks for a binary in the store of setup-envtest, in folders of a
// minor version of Kubernetes for this machine.
func downloaded(ctx context.Context, minor string, b Binary) (place, error) {
	dir, err := store.DefaultStoreDir()
	if err != nil {
		return place{}, err
	}
	filter := store.Filter{Platform: envtestversions.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}}
	if filter.Version, err = envtestversions.FromExpr(minor + ".x"); err != nil {
		return place{}, err
	}
	releases := store.NewAt(dir)
	items, err := releases.List(logr.NewContext(ctx, logr.Discard()), filter) // the newest first
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, nil // nothing was ever downloaded
	}
	if err != nil {
		return place{}, err
	}
	p := place{}
	for _, item := range items {
		folder, err := releases.Path(item)
		if err != nil {
			return place{}, err
		}
		path := filepath.Join(folder, string(b))
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // not each archive has each binary
		case err != nil || !info.Mode().IsRegular() || info.Size() == 0 || info.Mode()&0o111 == 0:
			p.unusable = append(p.unusable, path)
		default:
			return place{path: path, found: true, release: item.Version.String()}, nil
		}
	}
	return p, nil
}

// Missing lists the binaries that Start compiles first, because none of the
// places that Build names has them.
func Missing(ctx context.Context, o Options) ([]Binary, error) {
	var missing []Binary
	for _, b := range o.binaries() {
		p, err := find(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", b, err)
		}
		if !p.found {
			missing = append(missing, b)
		}
	}
	return missing, nil
}

// sources returns the origin of binaries in one line: kube-apiserver 1.37.2,
// etcd from one folder; kwok from another.
func sources(ctx context.Context, binaries []Binary) (string, error) {
	var folders []string
	names := map[string][]string{}
	for _, b := range binaries {
		p, err := find(ctx, b)
		if err != nil {
			return "", err
		}
		folder, name := filepath.Dir(p.path), string(b)
		if p.release != "" && b.ofKubernetes() {
			name += " " + p.release
		}
		if names[folder] == nil {
			folders = append(folders, folder)
		}
		names[folder] = append(names[folder], name)
	}
	var parts []string
	for _, folder := range folders {
		parts = append(parts, strings.Join(names[folder], ", ")+" from "+folder)
	}
	return strings.Join(parts, "; "), nil
}

// build compiles a binary that was not found.
func build(ctx context.Context, progress io.Writer, b Binary, p place) error {
	for _, path := range p.unusable {
		fmt.Fprintf(progress, "%s is not used: it is empty or not executable\n", path)
	}
	stale, err := output(goCommand(ctx, p.module, "list", "-deps", "-tags", b.tags(), "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", b.pkg()))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o750); err != nil {
		return err
	}
	// Another process may build the same: the last one replaces the file by an
	// equal one, and no process ever runs half of one.
	unfinished := fmt.Sprintf("%s.%d", p.path, os.Getpid())
	defer func() { _ = os.Remove(unfinished) }() // renamed if all went well
	name := strings.TrimSpace(string(b) + " " + p.release)
	cmd := goCommand(ctx, p.module, "build", "-v", "-o", unfinished, "-tags", b.tags(), "-ldflags", linkerFlags(p.release), b.pkg())
	if err := runWithProgress(cmd, progress, name, len(strings.Fields(stale))); err != nil {
		return err
	}
	return os.Rename(unfinished, p.path)
}

// linkerFlags let the programs of a release of Kubernetes report its version, as
// those that are published do.
func linkerFlags(release string) string {
	if release == "" {
		return "-s -w"
	}
	major, rest, _ := strings.Cut(release, ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "k8s.io/component-base/version."
	return fmt.Sprintf("-s -w -X %[1]sgitVersion=v%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s", pkg, release, major, minor)
}

// runWithProgress runs a go build -v, which prints a line for each package
// that it compiles, and reports every tenth of them.
func runWithProgress(cmd *exec.Cmd, progress io.Writer, name string, total int) error {
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "building %s from source: %d packages to compile\n", name, total)
	if err := cmd.Start(); err != nil {
		return err
	}
	var messages []string
	compiled, tenth := 0, 0
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := lines.Text()
		if strings.ContainsAny(line, " :") { // not a package but a message
			messages = append(messages, line)
			continue
		}
		compiled++
		if total > 0 && compiled*10/total > tenth {
			tenth = compiled * 10 / total
			fmt.Fprintf(progress, "building %s: %d of %d packages\n", name, compiled, total)
		}
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(err, errors.New(strings.Join(messages, "\n")))
	}
	fmt.Fprintf(progress, "building %s: done\n", name)
	return nil
}

// Repository is the root folder of solepod's source: the nearest one above the
// working folder that has its go.mod.
func Repository(context.Context) (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if bytes.HasPrefix(mod, []byte("module github.com/solepod/solepod\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in solepod's source", start)
		}
	}
}

// cacheDir is a folder for exactly the versions of a module, whose go.mod is mod.
func cacheDir(module string, mod []byte) (string, error) {
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(append(mod, sums...))
	root, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "solepod", "controlplane", hex.EncodeToString(hash[:6])+"-"+runtime.Version()), nil
}

func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd
}

func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
