package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/solepod/solepod/pkg/audit"
)

type reclaimOptions struct {
	scanOptions
	output[audit.Results]
	yes, dryRun bool
	rate        float32
}

func newReclaimCommand() *cobra.Command {
	o := reclaimOptions{output: output[audit.Results]{kind: "ReclaimReport", formats: map[string]func(io.Writer, audit.Results) error{
		"table": audit.ResultsTable,
	}}}
	cmd := &cobra.Command{
		Use:   "reclaim [NAMESPACE/POD...]",
		Short: "Remove task pods that are left over",
		Long: `Remove task pods that are left over.

Without --yes, the command lists the pods that it would remove, with the reason
for each. It removes finished pods: leftovers, and pods of superseded tries. It
removes a live pod only if you name the pod; then it removes no other. With
--abandoned-after, it also removes pods that still run although nothing waits
for them: those whose base container has ended (BaseContainerEnded), and those
of an environment that no longer exists (UnknownEnvironment).

It marks each pod as checked, so that Airflow no longer finds it, and then
deletes it. It skips pods that have changed since the scan. You can interrupt
the command and run it again at any time.

Exit codes: 0 all pods removed; 1 some pods could not be removed; 2 the command
failed.`,
		Example: `  solepod reclaim                              # list what would be removed
  solepod reclaim --yes --environment alpha    # remove the leftovers of alpha
  solepod reclaim --yes airflow/task-abc123    # remove this pod, even if it is live
  solepod reclaim --abandoned-after 24h        # list also pods that run on for nothing`,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := podNames(args)
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), names, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.addScanFlags(cmd)
	o.addFlag(cmd)
	cmd.Flags().DurationVar(&o.abandonedAfter, "abandoned-after", 0, "also remove pods that run on, this long after the end of their base container, or after their creation if their environment no longer exists; 0 for never")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "remove the pods")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", true, "only list the pods; the opposite of --yes")
	cmd.MarkFlagsMutuallyExclusive("yes", "dry-run")
	cmd.Flags().Float32Var(&o.rate, "rate", 20, "maximum number of pods to remove in a second")
	return cmd
}

func (o *reclaimOptions) run(ctx context.Context, names []types.NamespacedName, stdout, stderr io.Writer) error {
	print, err := o.printer()
	if err != nil {
		return err
	}
	if !o.dryRun {
		return errors.New("--dry-run=false: want --yes")
	}
	if o.abandonedAfter < 0 {
		return fmt.Errorf("--abandoned-after %s: want 0s or more", o.abandonedAfter)
	}
	if o.rate <= 0 {
		return fmt.Errorf("--rate %g: want more than 0", o.rate)
	}
	s, err := o.scan(ctx, stderr)
	if err != nil {
		return err
	}
	findings := s.report.Reclaimable()
	if len(names) > 0 {
		if findings, err = s.cluster.Named(names, s.options); err != nil {
			return err
		}
	}
	reclaimer := audit.Reclaimer{} // for a dry run
	if o.yes {
		step, end := counter(stderr, "Reclaimed", len(findings))
		defer end()
		reclaimer = audit.Reclaimer{
			Client:  s.client,
			Limiter: flowcontrol.NewTokenBucketRateLimiter(o.rate, 1),
			Done:    func(audit.Result) { step() },
		}
	}
	results, interrupted := reclaimer.Reclaim(ctx, findings)
	if err := errors.Join(print(stdout, results), interrupted); err != nil {
		return err
	}
	if results.Failed() {
		return errFound
	}
	return nil
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
