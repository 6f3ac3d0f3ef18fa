// Command solepod keeps the task pods of several Airflow deployments in one
// Kubernetes cluster apart.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "solepod:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func newCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "solepod",
		Short:         "Keeps the task pods of several Airflow deployments in one cluster apart",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(newServeCommand(), newVersionCommand())
	return cmd
}
