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

// errFound is of a command that has done its work and found a fault.
var errFound = errors.New("found faults")

func newCheckCommand() *cobra.Command {
	var cluster clusterOptions
	var output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find out whether an installation works, and what to do if not",
		Long: `Find out whether an installation works, and what to do if not.

It reads, and creates one task pod as a dry run, to see both webhooks answer.
Each check has a section in docs/check.md.

Exit codes: 0 all is well, perhaps with warnings; 1 a check has failed;
2 it could not check.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := printer(output, map[string]func(io.Writer, []check.Result) error{"table": check.Table, "json": check.JSON})
			if err != nil {
				return err
			}
			config, err := cluster.restConfig()
			if err != nil {
				return err
			}
			installation, err := newInstallation(config, cluster.namespace)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			results := installation.Run(ctx)
			if err := print(cmd.OutOrStdout(), results); err != nil {
				return err
			}
			if check.Failures(results) > 0 {
				return errFound
			}
			return nil
		},
	}
	cluster.addFlags(cmd.Flags(), "namespace")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long all checks may take")
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
