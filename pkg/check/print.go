package check

import (
	"fmt"
	"io"
	"strings"

	"github.com/fatih/color"
)

// Results are the results of all checks.
type Results struct {
	Checks []Result `json:"checks"`
}

// Failed reports whether a check has failed.
func (r Results) Failed() bool { return r.count()[Failed] > 0 }

func (r Results) count() map[Status]int {
	counts := map[Status]int{}
	for _, result := range r.Checks {
		counts[result.Status]++
	}
	return counts
}

// Table prints the results, in colours unless [color.NoColor] is set.
func Table(w io.Writer, all Results) error {
	results := all.Checks
	var b strings.Builder
	signs := map[Status]string{
		OK: color.GreenString("✓"), Warning: color.YellowString("!"), Failed: color.RedString("✗"), Skipped: color.New(color.Faint).Sprint("-"),
	}
	width := 0
	for _, r := range results {
		width = max(width, len(r.Name))
	}
	category := ""
	for _, r := range results {
		if r.Category != category {
			if category != "" {
				b.WriteByte('\n')
			}
			category = r.Category
			fmt.Fprintln(&b, color.New(color.Bold).Sprint(category))
		}
		detail := func(sep, text string) string {
			if text == "" {
				return ""
			}
			return sep + text
		}
		indent := "\n" + strings.Repeat(" ", width+6)
		fmt.Fprintf(&b, "  %s %-*s  %s", signs[r.Status], width, r.Name, r.Description)
		if r.Cure == "" {
			fmt.Fprintln(&b, detail(": ", r.Detail))
			continue
		}
		fmt.Fprintln(&b, detail(indent, r.Detail)+detail(indent+"Cure: ", r.Cure)+detail(indent, r.Docs))
	}
	counts := all.count()
	fmt.Fprintf(&b, "\n%d checks: ok %d, warning %d, failed %d, skipped %d\n",
		len(results), counts[OK], counts[Warning], counts[Failed], counts[Skipped])
	_, err := io.WriteString(w, b.String())
	return err
}
