package claim

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The explorer skips a state whose key it has seen. So two states that differ in
// anything that a process will act on must have different keys.
func TestKey(t *testing.T) {
	pod := newPod
	claim := func(change func(*coordinationv1.Lease)) *coordinationv1.Lease {
		l := lease("x", held("x", "1", 0))
		change(l)
		return l
	}
	answers := func(objects ...any) func(*state) {
		return func(s *state) {
			for _, object := range objects {
				s.reconciler.answers = append(s.reconciler.answers, answer{object: object})
			}
		}
	}
	states := map[string]func(*state){
		"nothing":                        func(*state) {},
		"a pod":                          func(s *state) { s.pods["x"] = pod("x alpha~", "1") },
		"a pod of another UID":           func(s *state) { s.pods["x"] = pod("x alpha~", "2") },
		"a pod that is checked":          func(s *state) { s.pods["x"] = pod("x alpha~ already_checked=True", "1") },
		"a pod without its label":        func(s *state) { s.pods["x"] = pod("x alpha~ kubernetes_pod_operator-", "1") },
		"a pod in the cache":             func(s *state) { s.cache.pods["x"] = pod("x alpha~", "1") },
		"a pod that guards know":         func(s *state) { s.known = map[string]*corev1.Pod{"x": pod("x alpha~", "1")} },
		"a pod that is gone":             func(s *state) { s.gone = []types.UID{"1"} },
		"a claim":                        func(s *state) { s.leases["x"] = claim(func(*coordinationv1.Lease) {}) },
		"a claim of another version":     func(s *state) { s.leases["x"] = claim(func(l *coordinationv1.Lease) { l.ResourceVersion = "7" }) },
		"a claim of another UID":         func(s *state) { s.leases["x"] = claim(func(l *coordinationv1.Lease) { l.UID = "7" }) },
		"a claim of another holder":      func(s *state) { s.leases["x"] = lease("x", held("x", "2", 0)) },
		"a claim in the cache":           func(s *state) { s.cache.leases["x"] = claim(func(*coordinationv1.Lease) {}) },
		"later":                          func(s *state) { s.now = s.now.Add(GracePeriod) },
		"a creator admitted":             func(s *state) { s.creators[0].phase = admitted },
		"another creator admitted":       func(s *state) { s.creators[1].phase = admitted },
		"a creator's second attempt":     func(s *state) { s.creators[0].attempt = 1 },
		"a creator given up":             func(s *state) { s.creators[0].dead = true },
		"a creator that began":           func(s *state) { s.creators[0].started = now },
		"a claim told to a creator":      func(s *state) { s.creators[0].answers = []answer{{object: lease("x", held("x", "1", 0))}} },
		"no claim told to a creator":     func(s *state) { s.creators[0].answers = []answer{{err: notFound("x")}} },
		"a conflict told to a creator":   func(s *state) { s.creators[0].answers = []answer{{err: conflict("x")}} },
		"success told to a creator":      func(s *state) { s.creators[0].answers = []answer{{}} },
		"the Reconciler at work":         func(s *state) { s.reconciler.req = "x" },
		"no pods listed":                 answers([]any(nil)),
		"a pod listed":                   answers([]any{pod("x alpha~", "1")}),
		"another pod listed":             answers([]any{pod("x alpha~", "2")}),
		"a pod listed, checked":          answers([]any{pod("x alpha~ already_checked=True", "1")}),
		"a pod told":                     answers(pod("x alpha~", "1")),
		"two pods listed":                answers([]any{pod("x alpha~", "1"), pod("y alpha~", "2")}),
		"a pod and then another":         answers([]any{pod("x alpha~", "1")}, pod("y alpha~", "2")),
		"gone":                           answers(true),
		"not gone":                       answers(false),
		"the time told":                  answers(now),
		"a later time told":              answers(now.Add(time.Second)),
		"no more deletions":              func(s *state) { s.left.deletions = 0 },
		"no more marks":                  func(s *state) { s.left.marks = 0 },
		"no more labels taken off":       func(s *state) { s.left.unlabellings = 0 },
		"no more time":                   func(s *state) { s.left.expiries = 0 },
		"no more runs of the Reconciler": func(s *state) { s.left.reconciliations = 0 },
	}
	seen := map[any]string{}
	for name, change := range states {
		s := start(scenario{creators: make([]creator, 2), moves: moves{1, 1, 1, 1, 1}})
		change(s)
		if other, ok := seen[s.key()]; ok {
			t.Errorf("%q and %q have the same key", name, other)
		}
		seen[s.key()] = name
	}
}

// What the key has no words for is no part of it, so it must not pass.
func TestKeyKnowsWhatItIsMadeOf(t *testing.T) {
	for name, object := range map[string]any{"a type": 7, "a type in a list": []any{7}} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the key says nothing of it")
				}
			}()
			s := start(scenario{})
			s.reconciler.answers = []answer{{object: object}}
			s.key()
		})
	}
}
