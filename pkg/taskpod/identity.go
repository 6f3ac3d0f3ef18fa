package taskpod

import (
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Identity is what makes two pods the same task to Airflow. The try number is
// not part of it: Airflow's selector leaves it out. Neither is
// parent_dag_id, which Airflow derives from the DAG.
type Identity struct {
	Namespace string
	DAG       string
	Task      string
	// RunLabel is LabelRun, or LabelExecutionDate for a pod without it.
	RunLabel string
	Run      string
	// Mapped is false for a pod without a map index, which is not the same as
	// any index.
	Mapped   bool
	MapIndex string
}

// Identity returns the pod's identity; ok is false if it is not a task pod.
// Empty label values are values like any other, as they are to a selector.
func (p Pod) Identity() (id Identity, ok bool) {
	if p.Labels[LabelOperator] != True {
		return Identity{}, false
	}
	if _, worker := p.Labels[LabelWorker]; worker {
		return Identity{}, false
	}
	dag, hasDAG := p.Labels[LabelDAG]
	task, hasTask := p.Labels[LabelTask]
	if !hasDAG || !hasTask {
		return Identity{}, false
	}
	runLabel := LabelRun
	run, hasRun := p.Labels[LabelRun]
	if !hasRun {
		runLabel = LabelExecutionDate
		if run, hasRun = p.Labels[LabelExecutionDate]; !hasRun {
			return Identity{}, false
		}
	}
	index, mapped := p.Labels[LabelMapIndex]
	return Identity{
		Namespace: p.Namespace, DAG: dag, Task: task,
		RunLabel: runLabel, Run: run,
		Mapped: mapped, MapIndex: index,
	}, true
}

// Overlaps reports whether the selector of a pod of either identity matches a
// pod of the other, environments aside. This is the case for equal
// identities, and for a mapped and an unmapped pod of the same task: the
// unmapped one's selector does not mention map_index at all, so it matches
// every index (read off 4.4.0 to 10.25.0, and run with the latter; it happens
// when two environments run different versions of one DAG).
func (i Identity) Overlaps(other Identity) bool {
	return i == other || i.AnyIndex() == other.AnyIndex() && (!i.Mapped || !other.Mapped)
}

// AnyIndex is the identity of the unmapped task with the same names, which
// every mapped pod of the task overlaps.
func (i Identity) AnyIndex() Identity {
	i.Mapped, i.MapIndex = false, ""
	return i
}

// Labels are the labels that name the identity in its namespace. The caller
// may change the map.
func (i Identity) Labels() map[string]string {
	out := map[string]string{LabelDAG: i.DAG, LabelTask: i.Task, i.RunLabel: i.Run}
	if i.Mapped {
		out[LabelMapIndex] = i.MapIndex
	}
	return out
}

// Hash returns 32 lower-case letters and digits that differ for different
// identities, whatever their values contain.
func (i Identity) Hash() string {
	// Quotes separate the values, which may contain any separator.
	text := append(make([]byte, 0, 256), '[')
	for n, value := range [...]string{i.Namespace, i.DAG, i.Task, i.RunLabel, i.Run, strconv.FormatBool(i.Mapped), i.MapIndex} {
		if n > 0 {
			text = append(text, ' ')
		}
		text = strconv.AppendQuote(text, value)
	}
	sum := sha256.Sum256(append(text, ']'))
	return strings.ToLower(base32.HexEncoding.EncodeToString(sum[:20]))
}

// String is the identity in one line, unique for valid label values.
func (i Identity) String() string {
	parts := []string{i.Namespace, i.DAG, i.Task, i.RunLabel + "=" + i.Run}
	if i.Mapped {
		parts = append(parts, i.MapIndex)
	}
	return strings.Join(parts, "/")
}

// Selector is the label selector with which the operator of this pod looks
// for it (KubernetesPodOperator._build_find_pod_label_selector). With an
// environmentLabel, the operator's own labels are part of the selector
// (7.4.1+), so the label is in it if the pod declares it; pass "" for older
// providers. Airflow lists the pods of one namespace without any field
// selector: finished pods and pods being deleted match as well.
//
// The selector of a pod that is not a task pod matches nothing.
func (p Pod) Selector(environmentLabel string) labels.Selector {
	id, ok := p.Identity()
	if !ok {
		return labels.Nothing()
	}
	want := labels.Set(id.Labels())
	want[LabelOperator] = True
	if environmentLabel != "" && p.Declares(environmentLabel) {
		want[environmentLabel] = p.Environment(environmentLabel)
	}
	return labels.SelectorFromValidatedSet(want).Add(
		mustRequire(LabelChecked, selection.NotEquals, True),
		mustRequire(LabelWorker, selection.DoesNotExist),
	)
}

func mustRequire(key string, op selection.Operator, values ...string) labels.Requirement {
	r, err := labels.NewRequirement(key, op, values)
	if err != nil {
		panic(err) // the arguments are constants
	}
	return *r
}
