// Command solepod keeps the task pods of several Airflow deployments in one
// Kubernetes cluster apart.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(exitCode(newCommand().ExecuteContext(ctx), os.Stderr)) //nolint:gocritic // nothing is left to stop
}

// exitCode is 1 if what was looked for was found, and 2 for any other error.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFound):
		return 1
	}
	fmt.Fprintln(stderr, "solepod:", err)
	return 2
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "solepod",
		Short:         "Keeps the task pods of several Airflow deployments in one cluster apart",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(newServeCommand(), newCheckCommand(), newAuditCommand(), newReclaimCommand(), newVersionCommand())
	return cmd
}
