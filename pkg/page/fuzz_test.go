package page

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/solepod/solepod/pkg/audit"
)

// FuzzPage shows words of any kind in every place that there is for them. None
// of them may end its place: the page has the marks of the same page with
// harmless words.
func FuzzPage(f *testing.F) {
	for _, words := range []string{
		"a", "", "<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "'--></title></style>", "</td></table>{{.}}", "&lt;b&gt;", "javascript:alert(1)", "\x00\xff\u2028", "{{define \"pods\"}}",
	} {
		f.Add(words, "alpha", "x", "r", uint8(1))
		f.Add("a", words, words, words, uint8(2))
		f.Add("a", "b", words, "c", uint8(0))
	}
	f.Fuzz(func(t *testing.T, name, environment, task, detail string, n uint8) {
		got := rendered(t, n, name, environment, task, detail)
		harmless := strings.NewReplacer("<", "(", ">", ")", `"`, "!", "'", "!", "&", "+", "=", "-")
		want := rendered(t, n, harmless.Replace(name), harmless.Replace(environment), harmless.Replace(task), harmless.Replace(detail))
		for _, mark := range []string{"<", ">", `"`, "'", "<script", "<!--"} {
			if had, has := strings.Count(want, mark), strings.Count(got, mark); had != has {
				t.Errorf("%d times %s, and not %d", has, mark, had)
			}
		}
	})
}

// rendered is a page with n times each thing that there is to see.
func rendered(t *testing.T, n uint8, name, environment, task, detail string) string {
	t.Helper()
	now := time.Date(2023, 3, 8, 12, 0, 0, 0, time.UTC)
	r := audit.Report{Time: now}
	for i := range int(n % 4) { // more would be slower alone
		ref := audit.Ref{
			Namespace: "airflow", Name: name, Environment: environment, Phase: detail, Try: task, Created: now.Add(-time.Duration(i) * time.Hour),
			DAG: task, Task: task, Run: detail, MapIndex: task,
		}
		finding := audit.Finding{Ref: ref, Reason: audit.Reason(detail), Detail: detail}
		r.Environments = append(r.Environments, audit.Environment{Name: environment, Live: i})
		r.Collisions = append(r.Collisions, audit.Collision{
			DAG: task, Task: task, Run: detail, MapIndex: name, Pods: []audit.Ref{ref, ref}, Consequences: []audit.Consequence{{Providers: detail, Effect: name}},
		})
		r.Leftovers, r.Orphans = append(r.Leftovers, finding), append(r.Orphans, finding)
		r.ClaimsWithoutPods, r.UnreadableClaims = append(r.ClaimsWithoutPods, name), append(r.UnreadableClaims, task)
		r.PodsWithoutClaims = append(r.PodsWithoutClaims, ref)
		r.InFlight = append(r.InFlight, audit.PendingPod{Claim: name, Namespace: task, Pod: name, Environment: environment, ClaimedAt: now})
	}
	var b bytes.Buffer
	if err := Render(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
