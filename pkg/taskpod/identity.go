package taskpod

import (
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Identity is the part of a task pod that Airflow's selector matches: two pods of
// the same identity run the same task. The try number is not part of it, because
// it is not part of the selector. Neither is parent_dag_id, which Airflow derives
// from the DAG.
type Identity struct {
	Namespace string
	DAG       string
	Task      string
	// RunLabel is LabelRun, or LabelExecutionDate for a pod without it.
	RunLabel string
	Run      string
	// Mapped is false for a pod without a map index. No index is a value of its own.
	Mapped   bool
	MapIndex string
}

// Identity returns the identity of the pod; ok is false if it is not a task pod.
// An empty label value is a value like any other, as in a selector.
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

// Overlaps reports whether the selector of a pod of one identity matches a pod of
// the other, environments aside. That is the case for equal identities, and for a
// mapped and an unmapped pod of the same task. The selector of the unmapped pod
// does not contain map_index, so it matches every index (source: 4.4.0 to 10.25.0;
// run with 10.25.0). It happens if two environments run different versions of one
// DAG.
func (i Identity) Overlaps(other Identity) bool {
	return i == other || i.AnyIndex() == other.AnyIndex() && (!i.Mapped || !other.Mapped)
}

// AnyIndex returns the identity of the unmapped pod of the same task, which
// overlaps every mapped one.
func (i Identity) AnyIndex() Identity {
	i.Mapped, i.MapIndex = false, ""
	return i
}

// Labels returns the labels of the identity. The caller may change the map.
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

// String returns the identity in one line, unique for valid label values.
func (i Identity) String() string {
	parts := []string{i.Namespace, i.DAG, i.Task, i.RunLabel + "=" + i.Run}
	if i.Mapped {
		parts = append(parts, i.MapIndex)
	}
	return strings.Join(parts, "/")
}

// Selector returns the label selector that the operator of this pod uses to find
// it (KubernetesPodOperator._build_find_pod_label_selector). It contains the
// environment label if the pod declares it. Airflow lists the pods of one
// namespace without a field selector: finished pods and pods that are being
// deleted match, too.
//
// The selector of a pod that is not a task pod matches nothing.
func (p Pod) Selector(environmentLabel string) labels.Selector {
	id, ok := p.Identity()
	if !ok {
		return labels.Nothing()
	}
	want := labels.Set(id.Labels())
	want[LabelOperator] = True
	if p.Declares(environmentLabel) {
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
