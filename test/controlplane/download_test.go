package controlplane

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// archive is a release as setup-envtest downloads it: a kube-apiserver, an etcd and
// a kubectl that do nothing.
func archive(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	compressed := gzip.NewWriter(&out)
	files := tar.NewWriter(compressed)
	const content = "#!/bin/sh\n"
	for _, b := range []Binary{KubeAPIServer, Etcd, Kubectl} {
		header := &tar.Header{Name: "controller-tools/envtest/" + string(b), Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := files.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := files.Close(); err != nil {
		t.Fatal(err)
	}
	if err := compressed.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// make controlplane-download fills the store, and Build takes what is in it.
func TestDownload(t *testing.T) {
	root, known := known(t)
	oldest, newest := known[0], known[len(known)-1]
	release := archive(t)
	for name, test := range map[string]struct {
		variable    string // KUBERNETES_VERSION
		sum         string // of the archives, in the index
		unreachable bool
		broken      bool   // the store has the release already, without content
		minor       string // of the version that the store has afterwards
		want        string // in the output
	}{
		"the newest version":          {sum: digest(release), minor: newest, want: newest + ".78"},
		"another version":             {variable: oldest, sum: digest(release), minor: oldest, want: oldest + ".78"},
		"an interrupted download":     {sum: digest(release), broken: true, minor: newest, want: newest + ".78"},
		"a wrong sum":                 {sum: digest(nil), want: "checksum mismatch"},
		"an index out of reach":       {unreachable: true, want: "unable to perform request to get index"},
		"a version that is not there": {variable: "1.2", sum: digest(release), want: "unable to find a version"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := storeAt(t, dir)
			t.Cleanup(func() { // setup-envtest leaves folders that cannot be written to
				if out, err := exec.Command("chmod", "-R", "u+w", dir).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
			t.Setenv("KUBEBUILDER_ASSETS", "")
			t.Setenv(VersionVariable, test.variable)
			folder := func(version string) string {
				return filepath.Join(store, version+"-"+runtime.GOOS+"-"+runtime.GOARCH)
			}
			if test.broken {
				if err := os.MkdirAll(folder(newest+".78"), 0o700); err != nil {
					t.Fatal(err)
				}
			}

			mux := http.NewServeMux()
			server := httptest.NewServer(mux)
			defer server.Close()
			type file struct {
				Hash     string `json:"hash"`
				SelfLink string `json:"selfLink"`
			}
			releases := map[string]map[string]file{}
			for _, version := range []string{oldest + ".78", newest + ".77", newest + ".78"} {
				name := "envtest-v" + version + "-" + runtime.GOOS + "-" + runtime.GOARCH + ".tar.gz"
				releases["v"+version] = map[string]file{name: {test.sum, server.URL + "/" + name}}
				mux.HandleFunc("/"+name, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(release) })
			}
			index, err := yaml.Marshal(map[string]any{"releases": releases})
			if err != nil {
				t.Fatal(err)
			}
			mux.HandleFunc("/index.yaml", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(index) })
			if test.unreachable {
				server.Close()
			}

			download := exec.CommandContext(t.Context(), "make", "--no-print-directory", "controlplane-download",
				VersionVariable+"="+test.variable, "ENVTEST_INDEX="+server.URL+"/index.yaml")
			download.Dir = root
			out, err := download.CombinedOutput()
			if good := test.minor != ""; good != (err == nil) || !strings.Contains(string(out), test.want) {
				t.Errorf("%v, want %q in\n%s", err, test.want, out)
			}

			for _, minor := range known {
				for _, b := range []Binary{KubeAPIServer, Etcd, Kubectl} {
					want := ""
					if minor == test.minor {
						want = filepath.Join(folder(minor+".78"), string(b))
					}
					if p, err := downloaded(t.Context(), minor, b); err != nil || p.path != want {
						t.Errorf("%s of %s is %q, want %q: %v", b, minor, p.path, want, err)
					}
				}
			}
		})
	}
}

func digest(content []byte) string { return fmt.Sprintf("%x", sha512.Sum512(content)) }
