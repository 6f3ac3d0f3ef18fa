package audit

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/taskpod"
)

// FuzzScan scans any pods, one a line, with claims that list any holders.
func FuzzScan(f *testing.F) {
	for _, pods := range []string{
		"", "a", "a\nb", "a env=alpha\nb env=alpha", "a env=alpha\nb env=production stamped\nc", "a map_index=0\nb map_index=0\nc\nd map_index=", "a\nb map_index=1\nc map_index=2",
		"a ended\nb try_number=2", "a try_number=2\nb try_number=x\nc try_number=3 env=alpha", "a retired already_checked=True\nb", "a deleting\nb\nc", "a owned\nb",
		"a env=gone\nb env=gone ended", "a run_id=x\nb dag_id=", "a kubernetes_pod_operator=False\nb", "a execution_date=e\nb execution_date=e", "a env=<script>alert(1)</script>\nb env=\"'&",
		"a task_id=\x00\v\f\t\u2028\nb task_id=\x00\v\f\t\u2028", strings.Repeat("a\n", 30),
	} {
		f.Add(pods, `[{"pod":"a","uid":"uid-of-a","claimedAt":"2023-03-08T09:00:00Z"}]`, "v1", uint8(0))
		f.Add(pods, `[{"pod":"late","uid":"1","environment":"alpha","claimedAt":"2023-03-08T12:00:00Z"},{"mark":true,"claimedAt":"9999-12-31T23:59:59-23:59"}]`, "", uint8(0xff))
		f.Add(pods, "null", "v1", uint8(1))
		f.Add(pods, "{", "v2", uint8(2))
	}
	f.Fuzz(func(t *testing.T, lines, holders, version string, setting uint8) {
		// Of the other control characters, YAML writes some that it does not read.
		if !utf8.ValidString(lines) || strings.ContainsFunc(lines, func(r rune) bool { return r >= 0x7f && r <= 0x9f }) {
			t.Skip("the API server has no such strings")
		}
		o := options()
		if setting&2 != 0 {
			o.Environments = []string{"alpha", ""}
		}
		c := Cluster{Environments: map[string]bool{"alpha": true}}
		names := map[string]bool{}
		for i, line := range strings.Split(lines, "\n") {
			p := podOf(line, i)
			if i == 100 || names[p.Name] {
				break // the API server gives a name once
			}
			names[p.Name] = true
			c.Pods = append(c.Pods, p)
		}
		for _, p := range []Pod{c.Pods[0], {}} {
			id, _ := p.Identity()
			lease := &coordinationv1.Lease{}
			lease.Name, lease.Labels = claim.Name(id), id.Labels()
			lease.Labels[claim.Label], lease.Labels[claim.LabelNamespace] = version, id.Namespace
			lease.Annotations = map[string]string{"solepod.io/holders": holders}
			of, held, ok := claim.Inspect(lease)
			if ok && p.IsTask() && of != id {
				t.Errorf("the claim of %v is of %v", id, of)
			}
			c.Claims = append(c.Claims, Claim{Name: lease.Name, Identity: of, Holders: held, Unreadable: !ok})
		}

		r := Scan(c, o)
		checkCollisions(t, c, o, r)
		c.Pods = slices.Clone(c.Pods) // the report points into the pods
		slices.Reverse(c.Pods)
		again := Scan(c, o)
		if diff := cmp.Diff(r, again, cmpopts.IgnoreUnexported(Finding{})); diff != "" {
			t.Errorf("in the other order: %s", diff)
		}
		checkPrinted(t, r)
		for _, f := range r.Reclaimable() {
			if !f.pod.Finished() || f.pod.Deleting || f.pod.ControllerOwned || !f.Safe {
				t.Errorf("to be removed: %+v", f)
			}
		}
	})
}

// podOf reads a pod from its line: a name, labels and its state.
func podOf(line string, age int) Pod {
	name, words, _ := strings.Cut(line, " ")
	p := pod(name, func(p *Pod) {
		p.UID, p.Created = types.UID("uid-of-"+name), now.Add(-time.Duration(age)*time.Minute)
	})
	for word := range strings.SplitSeq(words, " ") {
		switch key, value, set := strings.Cut(word, "="); {
		case key == "env":
			declares(value)(&p)
		case set:
			label(key, value)(&p)
		case word == "stamped":
			p.Stamped = true
		case word == "ended":
			endedBefore(2 * time.Hour)(&p)
		case word == "deleting":
			deleting(&p)
		case word == "owned":
			p.ControllerOwned = true
		case word == "retired":
			p.Retired = true
		case word == "elsewhere":
			p.Namespace = "elsewhere"
		}
	}
	return p
}

// checkCollisions looks for collisions in the way that takes longest: by the
// selector of each pod, among all pods.
func checkCollisions(t *testing.T, c Cluster, o Options, r Report) {
	t.Helper()
	reported := map[types.UID]bool{}
	for _, collision := range r.Collisions {
		for _, ref := range collision.Pods {
			reported[ref.UID] = true
		}
		if len(collision.Pods) < 2 || len(collision.Consequences) == 0 {
			t.Errorf("%+v is no collision", collision)
		}
	}
	colliding := map[types.UID]bool{}
	for _, p := range c.Pods {
		if p.Finished() || p.Checked() || !p.Guarded() {
			continue
		}
		var found []Pod
		selector := p.Selector(o.Settings.EnvironmentLabel)
		for _, x := range c.Pods {
			// Airflow labels no pod with both, which would be found by either.
			_, run := x.Labels[taskpod.LabelRun]
			_, date := x.Labels[taskpod.LabelExecutionDate]
			if run && date {
				return
			}
			if x.Guarded() && !x.Deleting && x.Namespace == p.Namespace && selector.Matches(labels.Set(x.Labels)) {
				found = append(found, x)
			}
		}
		if len(found) < 2 {
			continue
		}
		for _, x := range found {
			colliding[x.UID] = true
			if len(o.Environments) == 0 && !reported[x.UID] {
				t.Errorf("%s finds %s, which is in no collision", p.Name, x.Name)
			}
		}
	}
	for uid := range reported {
		if !colliding[uid] {
			t.Errorf("%s collides with nothing", uid)
		}
	}
}

// checkPrinted prints a report in each way.
func checkPrinted(t *testing.T, r Report) {
	t.Helper()
	for name, print := range map[string]func(io.Writer, Report) error{"table": Table, "wide": Wide} {
		var b bytes.Buffer
		if err := print(&b, r); err != nil || b.Len() == 0 {
			t.Errorf("%s: %v, %d bytes", name, err, b.Len())
		}
	}
}
