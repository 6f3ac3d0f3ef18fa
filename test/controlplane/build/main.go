// Command build builds the binaries of package controlplane ahead of time, where
// they do not exist, and prints their paths. Name the ones wanted; the default is
// all.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/solepod/solepod/test/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	binaries := controlplane.Binaries()
	if len(os.Args) > 1 {
		binaries = nil
		for _, name := range os.Args[1:] {
			binaries = append(binaries, controlplane.Binary(name))
		}
	}
	paths, err := controlplane.Build(ctx, os.Stderr, binaries...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
	for _, b := range binaries {
		fmt.Println(paths[b])
	}
}
