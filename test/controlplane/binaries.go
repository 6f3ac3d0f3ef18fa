package controlplane

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Binary is a program of the control plane.
type Binary string

// The binaries that this package can build and start.
const (
	KubeAPIServer         Binary = "kube-apiserver"
	Etcd                  Binary = "etcd"
	KubeControllerManager Binary = "kube-controller-manager"
	Kwok                  Binary = "kwok"
	Kubectl               Binary = "kubectl"
)

// Binaries lists all of them, the quickest to build first.
func Binaries() []Binary { return []Binary{Etcd, Kubectl, Kwok, KubeAPIServer, KubeControllerManager} }

// VersionVariable is the environment variable that chooses the version of
// Kubernetes, such as 1.34; the newest if it is not set.
const VersionVariable = "KUBERNETES_VERSION"

// binariesDir has a nested module for each version, which its script pin writes.
const binariesDir = "test/controlplane/binaries"

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

// module is the folder of the nested module that a binary is built from. That
// of the newest version has etcd and kwok for all.
func module(root string, b Binary) (string, error) {
	known, err := versions(root)
	if err != nil {
		return "", err
	}
	newest := known[len(known)-1]
	wanted := cmp.Or(os.Getenv(VersionVariable), newest)
	if !slices.Contains(known, wanted) {
		return "", fmt.Errorf("%s is %q and not one of %s", VersionVariable, wanted, strings.Join(known, ", "))
	}
	if !b.ofKubernetes() {
		wanted = newest
	}
	return filepath.Join(root, binariesDir, wanted), nil
}

// ofKubernetes tells whether each version of Kubernetes has its own.
func (b Binary) ofKubernetes() bool { return b != Etcd && b != Kwok }

// pkg is the main package, a tool of a nested module in ./binaries.
func (b Binary) pkg() string {
	switch b {
	case Etcd:
		return "go.etcd.io/etcd/server/v3"
	case Kwok:
		return "sigs.k8s.io/kwok/cmd/kwok"
	default:
		return "k8s.io/kubernetes/cmd/" + string(b)
	}
}

// Build makes sure that the binaries exist and returns their paths: those of
// the folder KUBEBUILDER_ASSETS, where it has them, whatever their version, and
// otherwise those of a folder in the user's cache, built from source if they
// are not there yet, of the version that KUBERNETES_VERSION names.
// A cold build of kube-apiserver takes about five minutes on two cores;
// progress tells of it.
func Build(ctx context.Context, progress io.Writer, binaries ...Binary) (map[Binary]string, error) {
	paths := map[Binary]string{}
	for _, b := range binaries {
		path, err := build(ctx, progress, b)
		if err != nil {
			return nil, fmt.Errorf("building %s: %w", b, err)
		}
		paths[b] = path
	}
	return paths, nil
}

func build(ctx context.Context, progress io.Writer, b Binary) (string, error) {
	if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
		path := filepath.Join(assets, string(b))
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	root, err := Repository(ctx)
	if err != nil {
		return "", err
	}
	module, err := module(root, b)
	if err != nil {
		return "", err
	}
	folder, err := cacheDir(module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, string(b))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}

	version, err := output(goCommand(ctx, module, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"))
	if err != nil {
		return "", err
	}
	stale, err := output(goCommand(ctx, module, "list", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", b.pkg()))
	if err != nil {
		return "", err
	}
	// Another process may be building the same: whoever is last replaces the
	// file by an equal one, and nobody ever runs half of one.
	unfinished := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer func() { _ = os.Remove(unfinished) }() // renamed if all went well
	cmd := goCommand(ctx, module, "build", "-v", "-o", unfinished, "-ldflags", linkerFlags(version), b.pkg())
	name := string(b)
	if b.ofKubernetes() {
		name += " " + version
	}
	if err := runWithProgress(cmd, progress, name, len(strings.Fields(stale))); err != nil {
		return "", err
	}
	return path, os.Rename(unfinished, path)
}

// linkerFlags let kube-apiserver report its version, as releases do.
func linkerFlags(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	const pkg = "k8s.io/component-base/version."
	return fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s", pkg, version, major, minor)
}

// runWithProgress runs a go build -v, which prints a line for each package
// that it compiles, and tells of each tenth of them.
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

// Repository is the root folder of solepod's source.
func Repository(ctx context.Context) (string, error) {
	return output(goCommand(ctx, "", "list", "-m", "-f", "{{.Dir}}", "github.com/solepod/solepod"))
}

// cacheDir is a folder for exactly these versions.
func cacheDir(module string) (string, error) {
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	mod, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(append(mod, sums...))
	root, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "solepod", "controlplane", hex.EncodeToString(hash[:6])+"-"+runtime.Version())
	return dir, os.MkdirAll(dir, 0o750)
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
