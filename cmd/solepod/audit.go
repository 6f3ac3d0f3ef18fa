package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/page"
)

// scanOptions are those of the commands that scan a cluster.
type scanOptions struct {
	clusterOptions
	namespaces   []string
	environments []string
	olderThan    time.Duration
	// abandonedAfter is a flag of reclaim only.
	abandonedAfter time.Duration
}

func (o *scanOptions) addScanFlags(cmd *cobra.Command) {
	o.addClusterFlags(cmd)
	flags := cmd.Flags()
	flags.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "only task pods in these namespaces; default: all")
	flags.StringSliceVarP(&o.environments, "environment", "e", nil, "only task pods of these environments; default: all")
	flags.DurationVar(&o.olderThan, "older-than", audit.LeftoverAge, "minimum time since a pod ended for it to be a leftover")
}

// scan is a scanned cluster, and the client it was read with.
type scan struct {
	client  client.Client
	cluster audit.Cluster
	options audit.Options
	report  audit.Report
}

func (o *scanOptions) scan(ctx context.Context, stderr io.Writer) (*scan, error) {
	if o.olderThan < 0 {
		return nil, fmt.Errorf("--older-than %s: want 0 or more", o.olderThan)
	}
	restConfig, err := o.restConfig()
	if err != nil {
		return nil, err
	}
	c, err := client.New(restConfig, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	cfg, installed, err := installation.Configuration(ctx, c, o.systemNamespace)
	if err != nil {
		return nil, err
	}
	if !installed {
		cfg = config.Default()
		fmt.Fprintf(stderr, "solepod is not installed in namespace %s (--system-namespace): using the default configuration\n", o.systemNamespace)
	}
	cluster, err := audit.Source{Client: c, Namespace: o.systemNamespace, Configuration: cfg}.Collect(ctx)
	if err != nil {
		return nil, err
	}
	if !installed {
		cluster.Claims = nil
	}
	options := audit.Options{
		Settings: cfg.Policy(), Namespaces: o.namespaces, Environments: o.environments, OlderThan: o.olderThan, AbandonedAfter: o.abandonedAfter,
		Now: time.Now(),
	}
	return &scan{c, cluster, options, audit.Scan(cluster, options)}, nil
}

func newAuditCommand() *cobra.Command {
	var o scanOptions
	output := output[audit.Report]{kind: "AuditReport", formats: map[string]func(io.Writer, audit.Report) error{
		"table": audit.Table, "wide": audit.Wide, "html": page.Render,
	}}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "List task pods that collide, are left over or orphaned",
		Long: `List task pods that collide, are left over or orphaned.

A collision is a set of task pods that one selector of Airflow matches. A
leftover is a pod whose task has ended and that Airflow has not marked as
checked: the pod has ended, its base container has ended while others run on, or
it stays in Terminating. An orphan is a live pod that no Airflow waits for: the
same environment has a pod of a later try, or its environment no longer exists.
See docs/operations.md.

The command only reads. It works on clusters without solepod, too.

Exit codes: 0 no problems; 1 problems found; 2 the scan failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := output.printer()
			if err != nil {
				return err
			}
			s, err := o.scan(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := print(cmd.OutOrStdout(), s.report); err != nil {
				return err
			}
			if s.report.Found() {
				return errFound
			}
			return nil
		},
	}
	o.addScanFlags(cmd)
	output.addFlag(cmd)
	return cmd
}
