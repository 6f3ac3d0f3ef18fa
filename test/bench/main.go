// Command bench compares creates of task pods in one run: without webhooks, with hooks
// that do nothing, with the minimum of an exact guard, with solepod, and with a guard
// that lists pods. make bench runs it; docs/performance.md explains it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/solepod/solepod/test/controlplane"
)

type options struct {
	sizes    []int
	clients  []int
	rounds   int
	slice    time.Duration
	jsonFile string
	benchFmt string
	fsync    bool
	memory   int
}

func main() {
	var o options
	sizes := flag.String("sizes", "0,5000,50000", "how many task pods are there already")
	clients := flag.String("clients", "1,8,32", "how many clients create pods at once")
	flag.IntVar(&o.rounds, "rounds", 32, "how often each variant has its turn in a row of the table; a quarter as often with several clients or on a busy cluster")
	flag.DurationVar(&o.slice, "slice", 100*time.Millisecond, "how long a turn lasts, with one client; twice as long with several")
	flag.StringVar(&o.jsonFile, "json", "", "file to write all numbers to")
	flag.StringVar(&o.benchFmt, "benchfmt", "", "file to write all samples to, for benchstat")
	flag.BoolVar(&o.fsync, "fsync", true, "have etcd wait for the disk")
	flag.IntVar(&o.memory, "memory", 100_000, "number of task pods for another measurement of memory and start, in addition to -sizes; 0 for none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := errors.Join(numbers(*sizes, &o.sizes), numbers(*clients, &o.clients))
	if err == nil {
		err = run(ctx, o, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

func numbers(text string, into *[]int) error {
	for part := range strings.SplitSeq(text, ",") {
		var n int
		if _, err := fmt.Sscan(part, &n); err != nil {
			return fmt.Errorf("%q: want numbers and commas: %w", text, err)
		}
		*into = append(*into, n)
	}
	return nil
}

func run(ctx context.Context, o options, out, progress io.Writer) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{ControllerManager: true, Fsync: o.fsync, Progress: progress})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	b, err := newBench(ctx, plane, o, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	var all report
	for _, size := range o.sizes {
		if err := b.fill(ctx, size); err != nil {
			return fmt.Errorf("filling the namespace with %d pods: %w", size, err)
		}
		for _, load := range []load{{size: size}, {size: size, busy: true}} {
			for _, clients := range o.clients {
				load.clients = clients
				for _, path := range paths() {
					if path.once && (clients != 1 || load.busy) || path.empty && size != o.sizes[0] {
						continue
					}
					load.path = path
					fmt.Fprintln(progress, load)
					r, err := b.row(ctx, load)
					if err != nil {
						return fmt.Errorf("%s: %w", load, err)
					}
					all.Rows = append(all.Rows, r)
				}
			}
		}
		if o.memory > 0 {
			if err := all.memory(ctx, b, progress); err != nil {
				return err
			}
		}
		if size == o.sizes[0] {
			for _, path := range paths() {
				if path.empty {
					continue
				}
				c, err := b.count(ctx, path)
				if err != nil {
					return fmt.Errorf("counting the calls of %s: %w", path.name, err)
				}
				all.Calls = append(all.Calls, c)
			}
		}
	}
	if o.memory > b.filled {
		if err := b.fill(ctx, o.memory); err != nil {
			return fmt.Errorf("filling the namespace with %d pods: %w", o.memory, err)
		}
		if err := all.memory(ctx, b, progress); err != nil {
			return err
		}
	}
	all.Targets = targets(all)
	if err := all.table(out); err != nil {
		return err
	}
	if o.benchFmt != "" {
		if err := writeFile(o.benchFmt, all.benchFormat); err != nil {
			return err
		}
	}
	if o.jsonFile == "" {
		return nil
	}
	return writeFile(o.jsonFile, func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(all)
	})
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
