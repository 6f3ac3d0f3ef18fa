package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/check"
)

// errFound is the error of a command that has run and has found problems.
var errFound = errors.New("found problems")

func newCheckCommand() *cobra.Command {
	var cluster clusterOptions
	var timeout time.Duration
	output := output[check.Results]{kind: "CheckReport", formats: map[string]func(io.Writer, check.Results) error{"table": check.Table}}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check whether an installation works, and how to repair it",
		Long: `Check whether an installation works, and how to repair it.

The command reads the installation. It also creates two task pods as a dry run,
to test both webhook configurations. docs/check.md has a section for each check.

Exit codes: 0 no check failed, though some may have warnings; 1 a check failed;
2 the command could not run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := output.printer()
			if err != nil {
				return err
			}
			config, err := cluster.restConfig()
			if err != nil {
				return err
			}
			installation, err := newInstallation(config, cluster.systemNamespace)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			results := installation.Run(ctx)
			if err := print(cmd.OutOrStdout(), results); err != nil {
				return err
			}
			if results.Failed() {
				return errFound
			}
			return nil
		},
	}
	cluster.addClusterFlags(cmd)
	output.addFlag(cmd)
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "maximum time for all checks")
	return cmd
}

func newInstallation(config *rest.Config, namespace string) (*check.Installation, error) {
	types := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, cmapi.AddToScheme} {
		if err := add(types); err != nil {
			return nil, err
		}
	}
	c, err := client.New(config, client.Options{Scheme: types})
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	return &check.Installation{
		Client: c, Namespace: namespace, Version: version, Now: time.Now,
		KubernetesVersion: func() (string, error) {
			info, err := d.ServerVersion()
			if err != nil {
				return "", err
			}
			return info.GitVersion, nil
		},
	}, nil
}
