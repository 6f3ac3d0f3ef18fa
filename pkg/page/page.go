// Package page renders a report of package audit as one HTML page. The page has no
// scripts and loads nothing, so that it can be stored, sent and opened anywhere.
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

//go:embed page.html
var source string

// rows is the maximum number of rows of each table; -o wide prints all.
const rows = 200

// Render writes a report as a page.
func Render(w io.Writer, report audit.Report) error {
	parsed, err := template.New("page").Funcs(template.FuncMap{
		"few":  func(n int) bool { return n < rows },
		"more": func(of int) int { return max(0, of-rows) },
		"time": func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"age":  func(then time.Time) string { return duration.HumanDuration(report.Time.Sub(then)) },
	}).Parse(source)
	if err != nil {
		return err
	}
	return parsed.Execute(w, page{report})
}

// page is the data of the template.
type page struct {
	Report audit.Report
}

// bar is one bar of a chart: its label, its title, where it begins, and its
// height, in units of the chart.
type bar struct {
	Label, Title string
	X            int
	Y, Height    float64
}

// chart is a bar chart of Width by Height units.
type chart struct {
	Bars          []bar
	Width, Height int
	// Top is the value at the upper edge.
	Top int
}

const (
	chartHeight = 120
	barDistance = 90
)

// LeftoverAges is a chart of the leftovers by the time since they ended.
func (p page) LeftoverAges() chart {
	ages := []struct {
		label string
		below time.Duration
	}{
		{"< 1 h", time.Hour}, {"1-6 h", 6 * time.Hour}, {"6-24 h", 24 * time.Hour}, {"1-7 d", 7 * 24 * time.Hour}, {"> 7 d", math.MaxInt64},
	}
	counts := make([]int, len(ages))
	c := chart{Width: len(ages) * barDistance, Height: chartHeight, Top: 1}
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
		height := float64(n) / float64(c.Top) * chartHeight
		c.Bars = append(c.Bars, bar{ages[i].label, fmt.Sprintf("%d ended %s ago", n, ages[i].label), i * barDistance, chartHeight - height, height})
	}
	return c
}
