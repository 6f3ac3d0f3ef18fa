package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"
)

// result sums up the samples of a variant, in seconds.
type result struct {
	Creates int     `json:"creates"`
	Median  float64 `json:"median"`
	// MedianLow and MedianHigh enclose the median with 95 % confidence; both are 0
	// if there are too few samples for that.
	MedianLow  float64 `json:"medianLow"`
	MedianHigh float64 `json:"medianHigh"`
	P99        float64 `json:"p99"`
	// PerSecond is how many creates succeeded in a second.
	PerSecond float64 `json:"perSecond"`
	// Ratio is the median relative to the floor's (or to the no-op's),
	// of the same turn, the median of all turns.
	Ratio     float64 `json:"ratio"`
	RatioLow  float64 `json:"ratioLow"`
	RatioHigh float64 `json:"ratioHigh"`
	RatioP99  float64 `json:"ratioP99"`
}

func quantile(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (r *row) base() variant {
	if slices.Contains(r.load.path.variants, floor) {
		return floor
	}
	return noop
}

func (r *row) evaluate() {
	r.Results = map[variant]result{}
	pooled := map[variant][]float64{}
	for v, turns := range r.Samples {
		all := slices.Concat(turns...)
		slices.Sort(all)
		pooled[v] = all
	}
	base := r.base()
	for v, all := range pooled {
		s := benchmath.AssumeNothing.Summary(benchmath.NewSample(all, &benchmath.DefaultThresholds), 0.95)
		var ratios []float64
		for i, turn := range r.Samples[v] {
			ratios = append(ratios, median(turn)/median(r.Samples[base][i]))
		}
		ratio := benchmath.AssumeNothing.Summary(benchmath.NewSample(ratios, &benchmath.DefaultThresholds), 0.95)
		for _, x := range []*benchmath.Summary{&s, &ratio} {
			if math.IsInf(x.Lo, 0) || math.IsInf(x.Hi, 0) {
				x.Lo, x.Hi = 0, 0
			}
		}
		r.Results[v] = result{
			Creates: len(all), Median: s.Center, MedianLow: s.Lo, MedianHigh: s.Hi, P99: quantile(all, 0.99), PerSecond: float64(len(all)) / r.took[v].Seconds(),
			Ratio: ratio.Center, RatioLow: ratio.Lo, RatioHigh: ratio.Hi, RatioP99: quantile(all, 0.99) / quantile(pooled[base], 0.99),
		}
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return quantile(sorted, 0.5)
}

// report is all that was measured.
type report struct {
	Rows    []row    `json:"rows"`
	Calls   []calls  `json:"calls"`
	Memory  []memory `json:"memory"`
	Targets []target `json:"targets"`
}

func (all *report) memory(ctx context.Context, b *bench, progress io.Writer) error {
	m, err := b.memory(ctx, progress)
	if err != nil {
		return fmt.Errorf("looking at solepod's memory: %w", err)
	}
	all.Memory = append(all.Memory, m)
	return nil
}

func (all *report) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range all.Rows {
		r := &all.Rows[i]
		fmt.Fprintf(w, "\n%s\n", r.Load)
		fmt.Fprintf(w, "variant\tcreates\tmedian ms\t95 %%\tp99 ms\ta second\tto %s\t95 %%\tp99 to %s\n", r.base(), r.base())
		for _, v := range r.load.path.variants {
			x := r.Results[v]
			fmt.Fprintf(w, "%s\t%d\t%.2f\t%s\t%.2f\t%.0f\t%.2f\t%s\t%.2f\n",
				v, x.Creates, 1000*x.Median, interval(1000*x.MedianLow, 1000*x.MedianHigh), 1000*x.P99, x.PerSecond, x.Ratio, interval(x.RatioLow, x.RatioHigh), x.RatioP99)
		}
	}
	fmt.Fprintf(w, "\nrequests for each create\tstamp hook\tguard hook\tLeases created\treads\tlists\tCPU ms\n")
	for _, c := range all.Calls {
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\n", c.Path, c.Stamp, c.Guard, c.Creates, c.Reads, c.Lists, 1000*c.CPU)
	}
	fmt.Fprintf(w, "\npods\tresident MiB\tafter a restart\tready after s\n")
	for _, m := range all.Memory {
		fmt.Fprintf(w, "%d\t%d\t%d\t%.1f\n", m.Pods, m.Resident>>20, m.Restarted>>20, m.Ready)
	}
	fmt.Fprintf(w, "\ntarget\twant\tgot\t\n")
	for _, t := range all.Targets {
		verdict := "holds"
		if !t.Holds {
			verdict = "does not hold"
		}
		fmt.Fprintf(w, "%s\t%s\t%.2f\t%s\n", t.Name, t.Want, t.Got, verdict)
	}
	return w.Flush()
}

func interval(low, high float64) string {
	if high == 0 {
		return "?" // too few samples
	}
	return fmt.Sprintf("%.2f-%.2f", low, high)
}

// benchFormat is what benchstat reads.
func (all *report) benchFormat(w io.Writer) error {
	for _, r := range all.Rows {
		for v, turns := range r.Samples {
			for _, turn := range turns {
				_, err := fmt.Fprintf(w, "BenchmarkCreate/path=%s/pods=%d/clients=%d/busy=%t/variant=%s %d %.0f ns/op\n",
					r.load.path.name, r.load.size, r.load.clients, r.load.busy, v, len(turn), median(turn)*1e9)
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// target is what the numbers should be.
type target struct {
	Name  string  `json:"name"`
	Want  string  `json:"want"`
	Got   float64 `json:"got"`
	Holds bool    `json:"holds"`
}

func targets(all report) []target {
	var out []target
	atMost := func(name string, limit, got float64) {
		out = append(out, target{name, fmt.Sprintf("<= %.2f", limit), got, got <= limit})
	}
	atLeast := func(name string, limit, got float64) {
		out = append(out, target{name, fmt.Sprintf(">= %.2f", limit), got, got >= limit})
	}
	exactly := func(name string, want, got float64) {
		out = append(out, target{name, fmt.Sprintf("= %.2f", want), got, got == want})
	}
	empty := 0.0
	for _, r := range all.Rows {
		x := r.Results[withSolepod]
		switch {
		case r.load.path.name == "create" && !r.load.busy && r.load.clients == 1:
			atMost("median to floor: "+r.Load, 1.1, x.Ratio)
			atMost("p99 to floor: "+r.Load, 1.3, x.RatioP99)
			// The API server itself becomes slower, which is not solepod's.
			grown := x.Median / r.Results[floor].Median
			if r.load.size == 0 {
				empty = grown
			} else if empty > 0 {
				atMost("median to that with 0 pods, relative to the floor: "+r.Load, 1.1, grown/empty)
			}
			if r.load.size >= 5000 {
				atLeast("naive to solepod: "+r.Load, 2, r.Results[naive].Median/x.Median)
			}
		case r.load.path.name == "create" && !r.load.busy && r.load.clients == 32:
			atLeast("throughput to floor: "+r.Load, 0.95, x.PerSecond/r.Results[floor].PerSecond)
		case r.load.path.denied, r.load.path.dryRun:
			atMost("median to no-op: "+r.Load, 1.2, x.Ratio)
		}
	}
	for _, c := range all.Calls {
		writes := 1.0
		if c.Path == "denied" || c.Path == "dry run" {
			writes = 0
		}
		exactly("Leases created: "+c.Path, writes, c.Creates)
		exactly("lists: "+c.Path, 0, c.Lists)
		if c.Path == "declared" {
			exactly("calls of the stamp hook: declared", 0, c.Stamp)
		}
	}
	for _, m := range all.Memory {
		if first := all.Memory[0]; m.Pods >= first.Pods+50_000 { // fewer are lost in what the collector leaves
			atMost(fmt.Sprintf("KiB a pod after a restart: %d pods", m.Pods), 1.5, float64(m.Restarted-first.Restarted)/1024/float64(m.Pods-first.Pods))
		}
	}
	return out
}
