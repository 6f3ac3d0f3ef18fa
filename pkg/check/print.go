package check

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/fatih/color"
)

// Failures are the results that have failed.
func Failures(results []Result) int { return count(results)[Failed] }

func count(results []Result) map[Status]int {
	counts := map[Status]int{}
	for _, r := range results {
		counts[r.Status]++
	}
	return counts
}

// JSON prints the results for programs.
func JSON(w io.Writer, results []Result) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		Checks []Result `json:"checks"`
	}{results})
}

// Table prints the results for people. Whether there are colours is up to
// [color.NoColor].
func Table(w io.Writer, results []Result) error {
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
	counts := count(results)
	fmt.Fprintf(&b, "\n%d checks: ok %d, warning %d, failed %d, skipped %d\n",
		len(results), counts[OK], counts[Warning], counts[Failed], counts[Skipped])
	_, err := io.WriteString(w, b.String())
	return err
}
