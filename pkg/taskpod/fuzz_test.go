package taskpod

import (
	"maps"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
)

// FuzzPods has any two pods looked for by their own Airflows. A pod is a line
// of labels, and of annotations that begin with @.
func FuzzPods(f *testing.F) {
	const task = "kubernetes_pod_operator=True dag_id=d task_id=t "
	lines := []string{
		"", "=", "dag_id", task, task + "run_id=r", task + "run_id=", task + "run_id=r map_index=0", task + "run_id=r map_index=", task + "run_id=r/0",
		task + "execution_date=r", task + "run_id=r execution_date=e", task + "run_id=r airflow-worker=7", task + "run_id=r already_checked=True",
		task + "run_id=r airflow-environment=alpha", task + "run_id=r airflow-environment=", task + "run_id=r airflow-environment=alpha @solepod.io/environment=stamped",
		task + "run_id=r @kubernetes.io/config.mirror=x", task + "run_id=r try_number=-99999999999999999999", task + "run_id=\x00\xff,'\"", task + "run_id=" + strings.Repeat("r", 64),
	}
	for i, a := range lines {
		f.Add(a, lines[(i+1)%len(lines)], DefaultEnvironmentLabel, true)
		f.Add(a, lines[4], "", true)
		f.Add(a, a, "a/b/c", false)
	}
	read := func(line string) Pod {
		meta := metav1.ObjectMeta{Namespace: "jobs", Labels: map[string]string{}, Annotations: map[string]string{}}
		for _, word := range strings.Split(line, " ") {
			key, value, _ := strings.Cut(word, "=")
			if annotation, is := strings.CutPrefix(key, "@"); is {
				meta.Annotations[annotation] = value
			} else {
				meta.Labels[key] = value
			}
		}
		return FromMeta(&meta, "")
	}
	f.Fuzz(func(t *testing.T, one, other, environmentLabel string, together bool) {
		a, b := read(one), read(other)
		if !together {
			b.Namespace = "elsewhere"
		}
		for _, p := range []Pod{a, b} {
			checkPod(t, p, environmentLabel)
		}
		x, isTask := a.Identity()
		y, areTasks := b.Identity()
		if !isTask || !areTasks {
			return
		}
		if x.Overlaps(y) != y.Overlaps(x) {
			t.Errorf("%v overlaps %v, but not the other way round", x, y)
		}
		if finds := a.Selector("").Matches(labels.Set(b.Labels)) || b.Selector("").Matches(labels.Set(a.Labels)); together && finds != x.Overlaps(y) {
			_, hasRun := a.Labels[LabelRun]
			_, haveRun := b.Labels[LabelRun]
			// No Airflow labels a pod with both: execution_date became run_id.
			if !a.Checked() && !b.Checked() && hasRun == haveRun {
				t.Errorf("one finds the other: %v; overlap of %v and %v: %v", finds, x, y, x.Overlaps(y))
			}
		}
		if storable(a, "") && storable(b, "") && (x.String() == y.String()) != (x == y) {
			t.Errorf("%#v and %#v read alike", x, y)
		}
	})
}

// storable reports whether an API server would take a pod's labels, and an
// environment's key if there is one.
func storable(p Pod, environmentLabel string) bool {
	all := maps.Clone(p.Labels)
	delete(all, "") // what an empty line is read as
	if environmentLabel != "" {
		all[environmentLabel] = p.Labels[environmentLabel]
	}
	return len(metav1validation.ValidateLabels(all, nil)) == 0
}

// checkPod checks what is true of each pod by itself.
func checkPod(t *testing.T, p Pod, environmentLabel string) {
	t.Helper()
	id, ok := p.Identity()
	selector := p.Selector(environmentLabel)
	if found := selector.Matches(labels.Set(p.Labels)); found != (ok && !p.Checked()) {
		t.Errorf("found by its own Airflow: %v; %q", found, p.Labels)
	}
	if _, numbered := p.Try(); numbered && p.Labels[LabelTry] == "" || p.Declares(environmentLabel) && p.Environment(environmentLabel) == "" {
		t.Errorf("made up: %q", p.Labels)
	}
	if !ok {
		if id != (Identity{}) || p.Guarded() {
			t.Errorf("%v of no task", id)
		}
		return
	}
	// Labels are all that there is to an identity.
	same := Pod{Namespace: p.Namespace, Labels: id.Labels()}
	same.Labels[LabelOperator] = True
	if again, ok := same.Identity(); !ok || again != id || !id.Overlaps(again) || !id.Overlaps(id.AnyIndex()) {
		t.Errorf("%#v became %#v", id, again)
	}
	if storable(p, environmentLabel) {
		if parsed, err := labels.Parse(selector.String()); err != nil || parsed.String() != selector.String() {
			t.Errorf("%q is read as %q, %v", selector, parsed, err)
		}
	}
}
