package webhook

import (
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/taskpod"
)

// A slim pod is the same task pod, and has only what is used.
func TestSlimPods(t *testing.T) {
	const label = "example.com/env"
	slim := slimPods(label, &words{})
	now := metav1.NewTime(time.Unix(1678266809, 0))
	for name, change := range map[string]func(*metav1.PartialObjectMetadata){
		"plain":    func(*metav1.PartialObjectMetadata) {},
		"declared": func(p *metav1.PartialObjectMetadata) { p.Labels[label] = "alpha" },
		"stamped": func(p *metav1.PartialObjectMetadata) {
			p.Labels[label], p.Annotations[taskpod.AnnotationEnvironment] = "alpha", taskpod.Stamped
		},
		"of an old Airflow": func(p *metav1.PartialObjectMetadata) {
			delete(p.Labels, "run_id")
			p.Labels["execution_date"] = "r"
		},
		"mapped":   func(p *metav1.PartialObjectMetadata) { p.Labels["map_index"] = "7" },
		"checked":  func(p *metav1.PartialObjectMetadata) { p.Labels["already_checked"] = "True" },
		"a worker": func(p *metav1.PartialObjectMetadata) { p.Labels["airflow-worker"] = "1" },
		"deleted":  func(p *metav1.PartialObjectMetadata) { p.DeletionTimestamp = &now },
		"a mirror": func(p *metav1.PartialObjectMetadata) { p.Annotations[corev1.MirrorPodAnnotationKey] = "m" },
		"of a Job": func(p *metav1.PartialObjectMetadata) {
			p.OwnerReferences = []metav1.OwnerReference{{Name: "other"}, {Name: "j", Controller: new(true)}}
		},
	} {
		pod := metadata.Object("Pod")
		pod.ObjectMeta = taskPod("x").ObjectMeta
		pod.ResourceVersion, pod.CreationTimestamp = "5", now
		pod.Labels["nobody"], pod.Annotations = "reads this", map[string]string{"nor": "this"}
		pod.ManagedFields, pod.Finalizers = []metav1.ManagedFieldsEntry{{Manager: "m"}}, []string{"f"}
		change(pod)
		want := taskpod.FromMeta(pod, "")
		want.Labels = maps.Clone(want.Labels)
		maps.DeleteFunc(want.Labels, func(key, _ string) bool { return key == "nobody" })
		object, err := slim(pod)
		if err != nil {
			t.Fatal(err)
		}
		got := object.(*metav1.PartialObjectMetadata)
		if diff := cmp.Diff(want, taskpod.FromMeta(got, "")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if got.GroupVersionKind() != pod.GroupVersionKind() || got.ResourceVersion != "5" {
			t.Errorf("%s: %v, version %s", name, got.GroupVersionKind(), got.ResourceVersion)
		}
		if _, carried := got.Annotations["nor"]; carried || len(got.ManagedFields)+len(got.Finalizers) > 0 || len(got.OwnerReferences) > 1 {
			t.Errorf("%s: %+v", name, got)
		}
		again, err := slim(got)
		if diff := cmp.Diff(object, again); diff != "" || err != nil {
			t.Errorf("%s, again: %v %s", name, err, diff)
		}
	}
	if missed := (toolscache.DeletedFinalStateUnknown{Key: "data-jobs/x"}); !cmp.Equal(pass(slim(missed)), any(missed)) {
		t.Error("a deletion that was missed is lost")
	}
}

func pass(object any, _ error) any { return object }

func TestSlimClaims(t *testing.T) {
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "solepod-system", Name: "claim-x", UID: "u", ResourceVersion: "5",
			Labels: map[string]string{"dag_id": "d"}, Annotations: map[string]string{"solepod.io/holders": "[]"},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("a line")},
	}
	want := &coordinationv1.Lease{ObjectMeta: *lease.ObjectMeta.DeepCopy()}
	lease.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	got, err := slimClaims(&words{})(lease)
	if diff := cmp.Diff(any(want), got); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// address tells copies of a word apart.
func address(word string) *byte { return unsafe.StringData(word) } //nolint:gosec // it is not written to

// Pods of one DAG that arrive one by one have one copy of its name, although there are
// garbage collections in between.
func TestWordsAreShared(t *testing.T) {
	slim := slimPods("e", &words{})
	copies := map[*byte]bool{}
	for i := range 20 {
		pod := metadata.Object("Pod")
		pod.ObjectMeta = taskPod(fmt.Sprint("x-", i)).ObjectMeta
		pod.Labels["dag_id"] = strings.Clone("a-dag")
		object, err := slim(pod)
		if err != nil {
			t.Fatal(err)
		}
		copies[address(object.(*metav1.PartialObjectMetadata).Labels["dag_id"])] = true
		runtime.GC()
		runtime.GC()
	}
	if len(copies) != 1 {
		t.Errorf("%d copies of the name of a DAG", len(copies))
	}
}

// Words that are no longer in use are forgotten, and those in use are not.
func TestWordsAreForgotten(t *testing.T) {
	w := &words{}
	used := address(w.shared("used"))
	for i := range 5 * maxYoung {
		w.shared(fmt.Sprint("run-", i))
		if address(w.shared("used")) != used {
			t.Fatalf("after %d words, there is another copy", i)
		}
		if got := len(w.young) + len(w.old); got > 2*maxYoung {
			t.Fatalf("%d words", got)
		}
	}
}
