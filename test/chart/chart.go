// Package chart runs Helm with solepod's chart.
package chart

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/solepod/solepod/test/controlplane"
)

// Release is the name that the tests install under, Namespace where to, and
// Version the chart's appVersion.
const (
	Release   = "solepod"
	Namespace = "solepod-system"
	Version   = "v0.1.0"
)

// Helm runs helm, of the version in test/tools, in the root of the repository and
// returns its standard output. The kubeconfig may be empty for what needs no
// cluster.
func Helm(ctx context.Context, kubeconfig string, args ...string) ([]byte, error) {
	root, err := controlplane.Repository(ctx)
	if err != nil {
		return nil, err
	}
	paths, err := controlplane.Build(ctx, os.Stderr, controlplane.Helm)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, paths[controlplane.Helm], args...)
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+kubeconfig)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("helm %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}

// Path is the chart's folder, from the root of the repository.
const Path = "manifests/chart"

// Render returns the manifests of an installation with values, each key=value.
func Render(ctx context.Context, values ...string) ([]byte, error) {
	args := []string{"template", Release, Path, "--namespace=" + Namespace, "--set=namespace.create=true"}
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	return Helm(ctx, "", args...)
}
