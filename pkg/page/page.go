// Package page shows a report of package audit as one HTML page: without
// scripts and without anything from elsewhere, so that it can be kept, sent
// and opened anywhere.
package page

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/solepod/solepod/pkg/audit"
)

// Page is what is shown.
type Page struct {
	Report *audit.Report
	// Replica is the name of the replica that has made the page, and Minutes
	// are the decisions it has taken, the oldest minute first; empty on a page
	// of the command line.
	Replica string
	Minutes []Minute
}

// Minute counts the decisions of one minute by their verdict.
type Minute struct {
	Start    time.Time
	Verdicts map[string]int
}

//go:embed page.html
var source string

// rows bounds each table; the command line has them all.
const rows = 200

// Render writes the page.
func (p Page) Render(w io.Writer) error {
	page, err := template.New("page").Funcs(template.FuncMap{
		"few":  func(n int) bool { return n < rows },
		"more": func(of int) int { return max(0, of-rows) },
		"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	}).Parse(source)
	if err != nil {
		return err
	}
	return page.Execute(w, p)
}

// Age is how old something was when the report was made.
func (p Page) Age(then time.Time) string { return duration.HumanDuration(p.Report.Time.Sub(then)) }

// With are pods, for a template of them.
func (p Page) With(pods []audit.Ref) any {
	return struct {
		Page Page
		Pods []audit.Ref
	}{p, pods}
}

// WithFindings are findings, for a template of them.
func (p Page) WithFindings(findings []audit.Finding) any {
	return struct {
		Page     Page
		Findings []audit.Finding
	}{p, findings}
}

// Bar is one bar of a chart: a label, a title, and parts on top of one another.
type Bar struct {
	Label, Title string
	X            int
	Parts        []Part
}

// Part of a bar: its class, and where it is, in units of the chart.
type Part struct {
	Class     string
	Y, Height float64
}

// Chart is a chart of bars, Width by Height units.
type Chart struct {
	Bars          []Bar
	Width, Height int
	// Top is the value at the upper edge.
	Top int
	// Step is the distance between two bars, Thick how wide each is.
	Step, Thick int
}

const chartHeight = 120

func (c *Chart) add(label, title string, classes []string, values map[string]int) {
	bar := Bar{Label: label, Title: title, X: len(c.Bars) * c.Step}
	y := float64(chartHeight)
	for _, class := range classes {
		if values[class] == 0 {
			continue
		}
		height := float64(values[class]) / float64(c.Top) * chartHeight
		y -= height
		bar.Parts = append(bar.Parts, Part{class, y, height})
	}
	c.Bars = append(c.Bars, bar)
	c.Width = len(c.Bars) * c.Step
}

// Verdicts are the parts of the bars of Decisions, from below.
func (p Page) Verdicts() []string {
	return []string{"admitted", "warned", "audited", "denied", "failed"}
}

// Decisions is a chart of the decisions by minute.
func (p Page) Decisions() Chart {
	c := Chart{Height: chartHeight, Top: 1, Step: 12, Thick: 9}
	for _, m := range p.Minutes {
		sum := 0
		for _, n := range m.Verdicts {
			sum += n
		}
		c.Top = max(c.Top, sum)
	}
	for _, m := range p.Minutes {
		title := m.Start.UTC().Format("15:04")
		for _, verdict := range p.Verdicts() {
			if n := m.Verdicts[verdict]; n > 0 {
				title += fmt.Sprintf(", %s %d", verdict, n)
			}
		}
		label := ""
		if m.Start.Minute()%10 == 0 {
			label = m.Start.UTC().Format("15:04")
		}
		c.add(label, title, p.Verdicts(), m.Verdicts)
	}
	return c
}

// LeftoverAges is a chart of the leftovers by how long ago they ended.
func (p Page) LeftoverAges() Chart {
	ages := []struct {
		label string
		below time.Duration
	}{
		{"< 1 h", time.Hour}, {"1-6 h", 6 * time.Hour}, {"6-24 h", 24 * time.Hour}, {"1-7 d", 7 * 24 * time.Hour}, {"> 7 d", math.MaxInt64},
	}
	counts := make([]int, len(ages))
	c := Chart{Height: chartHeight, Top: 1, Step: 90, Thick: 60}
	for _, f := range p.Report.Leftovers {
		ended := f.Created
		if f.Ended != nil {
			ended = *f.Ended
		}
		for i, bin := range ages {
			if p.Report.Time.Sub(ended) < bin.below {
				counts[i]++
				break
			}
		}
	}
	for _, n := range counts {
		c.Top = max(c.Top, n)
	}
	for i, n := range counts {
		c.add(ages[i].label, fmt.Sprintf("%d ended %s ago", n, ages[i].label), []string{"leftover"}, map[string]int{"leftover": n})
	}
	return c
}
