//go:build image

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
)

// archive is an OCI archive: files by name.
// https://github.com/opencontainers/image-spec/blob/main/image-layout.md
type archive map[string][]byte

// What is read of an OCI index, manifest and configuration.
type (
	descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Platform  struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
		} `json:"platform"`
	}
	index struct {
		Manifests []descriptor `json:"manifests"`
	}
	manifest struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	configuration struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Config       struct {
			User       string
			Entrypoint []string
			Cmd        []string
			Volumes    map[string]struct{}
			Labels     map[string]string
		} `json:"config"`
	}
)

// platform is the image for one platform.
type platform struct {
	configuration
	// files are those of each layer.
	layers [][]file
}

type file struct {
	tar.Header
	content []byte
}

func readArchive(path string) (archive, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	files, err := untar(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	a := archive{}
	for _, f := range files {
		a[f.Name] = f.content
	}
	return a, nil
}

func untar(r io.Reader) ([]file, error) {
	var files []file
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		files = append(files, file{*header, content})
	}
}

// digest is that of the image for all platforms, by which it is pulled.
func (a archive) digest(t *testing.T) string {
	t.Helper()
	var top index
	if err := json.Unmarshal(a["index.json"], &top); err != nil {
		t.Fatalf("index.json: %v", err)
	}
	if len(top.Manifests) != 1 {
		t.Fatalf("%s: want one image", a["index.json"])
	}
	return top.Manifests[0].Digest
}

// platforms are the images, by OS/architecture.
func (a archive) platforms(t *testing.T) map[string]platform {
	t.Helper()
	var all index
	a.unmarshal(t, a.digest(t), &all)
	out := map[string]platform{}
	for _, d := range all.Manifests {
		name := d.Platform.OS + "/" + d.Platform.Architecture
		if _, twice := out[name]; twice {
			t.Fatalf("%s is there twice", name)
		}
		var m manifest
		var p platform
		a.unmarshal(t, d.Digest, &m)
		a.unmarshal(t, m.Config.Digest, &p.configuration)
		if got := p.OS + "/" + p.Architecture; got != name {
			t.Errorf("the image for %s says that it is for %s", name, got)
		}
		for _, layer := range m.Layers {
			unzipped, err := gzip.NewReader(bytes.NewReader(a.blob(t, layer.Digest)))
			if err != nil {
				t.Fatalf("layer %s of %s: %v", layer.Digest, layer.MediaType, err)
			}
			files, err := untar(unzipped)
			if err != nil {
				t.Fatalf("layer %s: %v", layer.Digest, err)
			}
			p.layers = append(p.layers, files)
		}
		out[name] = p
	}
	return out
}

func (a archive) unmarshal(t *testing.T, digest string, into any) {
	t.Helper()
	if err := json.Unmarshal(a.blob(t, digest), into); err != nil {
		t.Fatalf("%s: %v", digest, err)
	}
}

// blob is what has a digest.
func (a archive) blob(t *testing.T, digest string) []byte {
	t.Helper()
	const algorithm = "sha256:"
	name := digest
	if len(digest) > len(algorithm) {
		name = digest[len(algorithm):]
	}
	content, ok := a["blobs/sha256/"+name]
	if !ok {
		t.Fatalf("%s is not in the archive", digest)
	}
	if sum := sha256.Sum256(content); algorithm+hex.EncodeToString(sum[:]) != digest {
		t.Fatalf("what is stored as %s has the digest %x", digest, sum)
	}
	return content
}
