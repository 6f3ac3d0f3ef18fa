package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/flowcontrol"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/installation"
	"github.com/solepod/solepod/pkg/page"
)

// scanOptions are those of all commands that scan.
type scanOptions struct {
	clusterOptions
	namespaces   []string
	environments []string
	olderThan    time.Duration
	output       string
}

func (o *scanOptions) addFlags(flags *pflag.FlagSet) {
	o.clusterOptions.addFlags(flags, "system-namespace")
	flags.StringSliceVarP(&o.namespaces, "namespace", "n", nil, "namespaces to look at; default: all")
	flags.StringSliceVarP(&o.environments, "environment", "e", nil, "environments to look at; default: all")
	flags.DurationVar(&o.olderThan, "older-than", audit.LeftoverAge, "how long ago a pod must have ended to be left over")
}

// scan is what was collected and scanned, with a client of it.
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
	cfg, installed, err := installation.Configuration(ctx, c, o.namespace)
	if err != nil {
		return nil, err
	}
	if !installed {
		cfg = config.Default()
		fmt.Fprintf(stderr, "solepod is not installed in namespace %s (--system-namespace); its default configuration is assumed\n", o.namespace)
	}
	bar, finish := progress(stderr, -1, "Reading task pods")
	source := audit.Source{Client: c, Namespace: o.namespace, Configuration: cfg, Progress: bar}
	cluster, err := source.Collect(ctx)
	finish()
	if err != nil {
		return nil, err
	}
	if !installed {
		cluster.Claims = nil
	}
	options := audit.Options{
		Settings: cfg.Policy(), Namespaces: o.namespaces, Environments: o.environments, OlderThan: o.olderThan, Now: time.Now(),
	}
	return &scan{c, cluster, options, audit.Scan(cluster, options)}, nil
}

// progress is a bar on a terminal, and nothing elsewhere. The number of steps
// is -1 where it is unknown. A bar that can not be drawn stops nobody.
func progress(w io.Writer, steps int, doing string) (step, finish func()) {
	file, ok := w.(*os.File)
	bar := progressbar.NewOptions(steps,
		progressbar.OptionSetWriter(w), progressbar.OptionSetVisibility(ok && term.IsTerminal(int(file.Fd()))),
		progressbar.OptionSetDescription(doing), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionClearOnFinish(),
	)
	return func() { _ = bar.Add(1) }, func() { _ = bar.Finish() }
}

func newAuditCommand() *cobra.Command {
	var o scanOptions
	printers := map[string]func(*audit.Report, io.Writer) error{
		"table": (*audit.Report).Table, "wide": (*audit.Report).Wide, "json": (*audit.Report).JSON, "yaml": (*audit.Report).YAML,
		"html": func(r *audit.Report, w io.Writer) error { return page.Page{Report: r}.Render(w) },
	}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Tell which task pods collide, are left over or orphaned",
		Long: `Tell which task pods collide, are left over or orphaned.

A collision is a set of pods that an Airflow can not tell apart. A leftover has
ended, and Airflow has not marked it as checked since. An orphan still runs,
though the same environment has a pod of a later try, or nothing names its
environment any more. The words are explained in docs/operations.md.

It only reads. It works without solepod being installed.

Exit codes: 0 nothing is the matter; 1 something is; 2 it could not look.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			print, err := printer(o.output, printers)
			if err != nil {
				return err
			}
			s, err := o.scan(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := print(&s.report, cmd.OutOrStdout()); err != nil {
				return err
			}
			if s.report.Found() {
				return errFound
			}
			return nil
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", strings.Join(slices.Sorted(maps.Keys(printers)), ", "))
	return cmd
}

func newReclaimCommand() *cobra.Command {
	var o scanOptions
	var yes bool
	var rate float32
	printers := map[string]func(io.Writer, []audit.Result) error{"table": audit.ResultsTable, "json": audit.ResultsJSON, "yaml": audit.ResultsYAML}
	cmd := &cobra.Command{
		Use:   "reclaim [NAMESPACE/POD...]",
		Short: "Remove task pods that were left behind",
		Long: `Remove task pods that were left behind.

Without --yes it tells what would go, and why. It removes pods that have ended:
leftovers, and those of superseded tries. A live pod is only removed if it is
named, and then nothing else is.

Each pod is first marked as checked, so that Airflow no longer finds it, and
then deleted, if it still is the pod that was looked at. It may be interrupted
and run again at any time.

Exit codes: 0 all is done; 1 some pods could not be removed; 2 it could not start.`,
		Example: `  solepod reclaim                              # what would go?
  solepod reclaim --yes --environment alpha    # let alpha's go
  solepod reclaim --yes airflow/task-abc123    # let this pod go, live or not`,
		RunE: func(cmd *cobra.Command, args []string) error {
			print, err := printer(o.output, printers)
			if err != nil {
				return err
			}
			if dry, err := cmd.Flags().GetBool("dry-run"); err != nil || !dry {
				return errors.Join(err, errors.New("--dry-run=false: want --yes"))
			}
			if rate <= 0 {
				return fmt.Errorf("--rate %g: want more than 0", rate)
			}
			names, err := podNames(args)
			if err != nil {
				return err
			}
			s, err := o.scan(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			findings := s.report.Reclaimable()
			if len(names) > 0 {
				if findings, err = s.cluster.Named(names, s.options); err != nil {
					return err
				}
			}
			reclaimer := audit.Reclaimer{}
			if yes {
				bar, finish := progress(cmd.ErrOrStderr(), len(findings), "Reclaiming")
				defer finish()
				reclaimer = audit.Reclaimer{
					Client:  s.client,
					Limiter: flowcontrol.NewTokenBucketRateLimiter(rate, 1),
					Done:    func(audit.Result) { bar() },
				}
			}
			results, interrupted := reclaimer.Reclaim(cmd.Context(), findings)
			if err := errors.Join(print(cmd.OutOrStdout(), results), interrupted); err != nil {
				return err
			}
			if slices.ContainsFunc(results, func(r audit.Result) bool { return r.Outcome == audit.Failed }) {
				return errFound
			}
			return nil
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", strings.Join(slices.Sorted(maps.Keys(printers)), ", "))
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().Bool("dry-run", true, "only tell what would go; the opposite of --yes")
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
	cmd.Flags().Float32Var(&rate, "rate", 20, "how many pods to remove in a second")
	return cmd
}

func podNames(args []string) ([]types.NamespacedName, error) {
	var names []types.NamespacedName
	for _, arg := range args {
		namespace, name, ok := strings.Cut(arg, "/")
		if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q: want NAMESPACE/POD", arg)
		}
		names = append(names, types.NamespacedName{Namespace: namespace, Name: name})
	}
	return names, nil
}
