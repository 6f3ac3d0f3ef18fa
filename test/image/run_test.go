//go:build image

package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/cert"

	"github.com/solepod/solepod/test/controlplane"
)

// container is an image, unpacked to be run.
type container struct {
	root string
	platform
}

func unpack(t *testing.T, p platform) container {
	t.Helper()
	c := container{filepath.Join(t.TempDir(), "root"), p}
	c.write(t, "solepod", p.binary(t), 0o755)
	return c
}

// write puts a file into the root, for all to read.
func (c container) write(t *testing.T, name string, content []byte, mode os.FileMode) {
	t.Helper()
	name = filepath.Join(c.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // for the image's user
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, mode); err != nil {
		t.Fatal(err)
	}
}

// command runs a program of the image in it, as its user, with a mount of its
// own for the root, which is read-only. There is less than in a container: not
// even /proc and /dev. Each program replaces the one before, so that the
// process is that of the image.
func (c container) command(ctx context.Context, args ...string) *exec.Cmd {
	const script = `set -eu
root=$1 user=$2
shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" "$@"`
	cmd := namespace(ctx, "sh", "-c", script, "sh", c.root, c.Config.User)
	cmd.Args = append(append(cmd.Args, c.Config.Entrypoint...), args...)
	return cmd
}

// namespace runs a program with mounts of its own. Another user than root becomes root
// in a user namespace, with the IDs of /etc/subuid and /etc/subgid.
func namespace(ctx context.Context, args ...string) *exec.Cmd {
	unshare := []string{"--mount"}
	if os.Geteuid() != 0 {
		unshare = append(unshare, "--user", "--map-root-user", "--map-auto")
	}
	return exec.CommandContext(ctx, "unshare", append(unshare, args...)...)
}

func TestPrograms(t *testing.T) {
	c := unpack(t, here(t))
	output := func(args ...string) string {
		t.Helper()
		out, err := c.command(t.Context(), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	version := c.Config.Labels["org.opencontainers.image.version"]
	if out := output("version"); !strings.HasPrefix(out, "solepod "+version+" commit ") {
		t.Errorf("%q, want version %s", out, version)
	} else {
		t.Log(out)
	}
	var got struct{ Version, Commit string }
	out := output("version", "-o", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Version != version || got.Commit != c.Config.Labels["org.opencontainers.image.revision"] {
		t.Errorf("%s: %v\nwant what the labels say: %v", out, err, c.Config.Labels)
	}
	if out := output("serve", "--help"); !strings.Contains(out, "--cert-dir ") {
		t.Errorf("%s", out)
	}
}

// A webhook that is ready has spoken to the API server by TLS: the image lacks
// nothing for it.
func TestServes(t *testing.T) {
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	kubeconfig, err := os.ReadFile(plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	// An address of this test's own, so that the usual ports are free.
	const host = "127.65.53.2"
	crt, key, err := cert.GenerateSelfSignedCertKey(host, nil, nil)
	if err != nil {
		t.Fatal(err)
	}

	// Volumes, had a kubelet started it.
	c := unpack(t, here(t))
	c.write(t, "etc/solepod/kubeconfig", kubeconfig, 0o644)
	c.write(t, "var/run/solepod/tls/tls.crt", crt, 0o644)
	c.write(t, "var/run/solepod/tls/tls.key", key, 0o644)

	cmd := c.command(context.Background(), "serve", "--kubeconfig=/etc/solepod/kubeconfig", "--cert-dir=/var/run/solepod/tls",
		"--webhook-bind-address="+host+":9443", "--metrics-bind-address="+host+":8080", "--health-probe-bind-address="+host+":8081")
	process, err := controlplane.StartProcess(cmd, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := errors.Join(process.Stop(), process.Err())
		if log, logErr := os.ReadFile(process.Log); err != nil || t.Failed() {
			t.Errorf("%v, %v; its log:\n%s", err, logErr, log)
		}
	})
	err = wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		select {
		case <-process.Done():
			return false, fmt.Errorf("it has ended: %w", process.Err())
		default:
			return get(ctx, "http://"+host+":8081/readyz") == nil, nil
		}
	})
	if err != nil {
		t.Fatalf("waiting until it is ready: %v", err)
	}
	checkConfined(t, cmd.Process.Pid)

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(crt)
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	conn, err := dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(host, "9443"))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// checkConfined checks the user and the root of a process in /proc.
func checkConfined(t *testing.T, pid int) {
	t.Helper()
	// From a namespace like its own, in which user IDs have the same names.
	status, err := namespace(t.Context(), "cat", fmt.Sprintf("/proc/%d/status", pid)).Output()
	if err != nil {
		t.Fatal(err)
	}
	const ids = user + " " + user + " " + user + " " + user // real, effective, saved, of the file system
	for key, want := range map[string]string{"Name": "solepod", "Uid": ids, "Gid": ids, "Groups": "", "CapPrm": none, "CapEff": none, "CapAmb": none} {
		_, rest, found := strings.Cut("\n"+string(status), "\n"+key+":")
		line, _, _ := strings.Cut(rest, "\n")
		got := strings.Join(strings.Fields(line), " ")
		if !found || got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
		t.Logf("%s: %s", key, got)
	}

	// ID, parent, device, what is mounted, where, with which options.
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	fields := strings.Fields(lines[0])
	if len(lines) != 1 || len(fields) < 6 || fields[4] != "/" || !strings.HasPrefix(fields[5]+",", "ro,") {
		t.Errorf("want one mount, the root, read-only:\n%s", mounts)
	}
	t.Logf("root: %s", fields[5])
}

// none is the empty set of capabilities.
const none = "0000000000000000"

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return errors.Join(err, resp.Body.Close())
}
