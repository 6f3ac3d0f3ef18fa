package audit

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize/english"
	"k8s.io/apimachinery/pkg/util/duration"
)

// few is the number of rows of each kind that Table prints.
const few = 10

// Table prints a report on about one screen.
func Table(w io.Writer, r Report) error { return r.print(w, few) }

// Wide prints all of a report.
func Wide(w io.Writer, r Report) error { return r.print(w, 0) }

// print prints a report with at most most rows of each kind; 0 for all.
func (r *Report) print(w io.Writer, most int) error {
	p := printer{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), most}
	p.line("%s, %s, %s, %s", english.Plural(r.Pods, "task pod", ""), english.Plural(len(r.Collisions), "collision", ""),
		english.Plural(len(r.Leftovers), "leftover", ""), english.Plural(len(r.Orphans), "orphan", ""))
	if len(r.Environments) > 0 {
		p.section("ENVIRONMENT", "LIVE", "FINISHED", "DECLARED", "COLLISIONS", "LEFTOVERS", "ORPHANS")
		for _, e := range r.Environments {
			p.row(cmp.Or(e.Name, "<unknown>"), e.Live, e.Finished, fmt.Sprintf("%d of %d", e.Declared, e.Live+e.Finished), e.Collisions, e.Leftovers, e.Orphans)
		}
	}
	for i, c := range r.Collisions {
		if p.enough(i, len(r.Collisions), "collisions") {
			break
		}
		p.line("\nCOLLISION of task %s", c.task())
		p.pods("  ", r.Time, c.Pods)
		p.line("  What Airflow will do, by version of its provider cncf.kubernetes:")
		for _, x := range c.Consequences {
			p.row("  "+x.Providers, x.Effect)
		}
	}
	p.findings("LEFTOVER", "leftovers", r.Time, r.Leftovers)
	p.findings("ORPHAN", "orphans", r.Time, r.Orphans)
	if len(r.PodsWithoutClaims) > 0 {
		p.line("\nPODS WITHOUT CLAIM: the leader has not added them to a claim")
		p.pods("", r.Time, r.PodsWithoutClaims)
	}
	p.list("CLAIM WITHOUT POD", "claims without pods", r.ClaimsWithoutPods)
	p.list("UNREADABLE CLAIM", "unreadable claims", r.UnreadableClaims)
	var undeclared []string
	for _, e := range r.Environments {
		if e.Undeclared() {
			undeclared = append(undeclared, e.Name)
		}
	}
	if len(undeclared) > 0 {
		p.line("\nNo pod of %s declares its environment: solepod denies a task that runs in two of these environments at the same time.", strings.Join(undeclared, ", "))
	}
	if !r.Found() {
		p.line("\nNo problems found.")
	}
	return p.Flush()
}

func (c *Collision) task() string {
	index := ""
	if c.MapIndex != "" {
		index = ", map index " + c.MapIndex
	}
	return fmt.Sprintf("%s of DAG %s, run %s%s, in namespace %s", c.Task, c.DAG, c.Run, index, c.Namespace)
}

// printer keeps the first error, which Flush returns, as a tabwriter does.
type printer struct {
	*tabwriter.Writer

	most int
}

func (p printer) line(format string, args ...any) {
	// A line without tabs ends the columns above it.
	fmt.Fprintf(p, format+"\n", args...)
}

func (p printer) section(headings ...any) {
	p.line("")
	p.row(headings...)
}

func (p printer) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = fmt.Sprint(cell)
	}
	fmt.Fprintln(p, strings.Join(texts, "\t"))
}

// enough reports whether most rows were printed, and prints how many more there are.
func (p printer) enough(shown, of int, what string) bool {
	if p.most == 0 || shown < p.most {
		return false
	}
	p.line("... and %d more %s, which -o wide shows", of-shown, what)
	return true
}

func (p printer) pods(indent string, now time.Time, pods []Ref) {
	p.row(indent+"NAMESPACE", "NAME", "ENVIRONMENT", "DECLARED", "PHASE", "TRY", "AGE")
	for i, x := range pods {
		if p.enough(i, len(pods), "pods") {
			return
		}
		p.row(indent+x.Namespace, x.Name, cmp.Or(x.Environment, "<unknown>"), yesNo(x.Declared), x.Phase, cmp.Or(x.Try, "-"), age(now, x.Created))
	}
}

func (p printer) findings(heading, plural string, now time.Time, findings []Finding) {
	if len(findings) == 0 {
		return
	}
	p.section(heading, "NAMESPACE", "ENVIRONMENT", "PHASE", "AGE", "REASON", "DETAIL", "RECLAIM")
	for i, f := range findings {
		if p.enough(i, len(findings), plural) {
			return
		}
		reclaim := "by name"
		if f.Safe {
			reclaim = "yes"
		}
		p.row(f.Name, f.Namespace, cmp.Or(f.Environment, "<unknown>"), f.Phase, age(now, f.Created), f.Reason, f.Detail, reclaim)
	}
}

func (p printer) list(heading, plural string, names []string) {
	if len(names) == 0 {
		return
	}
	p.section(heading)
	for i, name := range names {
		if p.enough(i, len(names), plural) {
			return
		}
		p.row(name)
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func age(now, then time.Time) string { return duration.HumanDuration(now.Sub(then)) }

// ResultsTable prints results with a summary.
func ResultsTable(w io.Writer, all Results) error {
	results := all.Pods
	p := printer{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), 0}
	if len(results) > 0 {
		p.row("NAMESPACE", "NAME", "ENVIRONMENT", "PHASE", "REASON", "OUTCOME", "DETAIL")
	}
	counts := map[Outcome]int{}
	for _, r := range results {
		counts[r.Outcome]++
		p.row(r.Namespace, r.Name, cmp.Or(r.Environment, "<unknown>"), r.Phase, r.Reason, r.Outcome, cmp.Or(r.Error, r.Detail))
	}
	switch {
	case len(results) == 0:
		p.line("There is nothing to reclaim.")
	case counts[outcomePlanned] > 0:
		p.line("\n%s would be reclaimed. This was a dry run; add --yes to reclaim.", english.Plural(counts[outcomePlanned], "pod", ""))
	default:
		p.line("\n%s: reclaimed %d, changed %d, failed %d", english.Plural(len(results), "pod", ""), counts[outcomeReclaimed], counts[outcomeChanged], counts[outcomeFailed])
	}
	return p.Flush()
}
