package race

import (
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/test/solepod"
)

// A mapped task may have as many pods at once as it has indexes. They share
// one mark, for which they must not wait on one another.
func TestMapped(t *testing.T) {
	g := shared.Run(t, plane)
	clients := solepod.Airflows(t, plane, namespace)
	const indexes = 500
	pods := taskPods("mapped", indexes, func(i int, pod *corev1.Pod) { pod.Labels["map_index"] = fmt.Sprint(i) })
	got := together(t.Context(), pods, func(int) client.Client { return clients["alpha"] }, func(_ int, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	t.Logf("%v; reviews by replica: %v", &got, g.Served())
	if got.admitted != indexes {
		t.Errorf("%v", &got)
	}
	// The same indexes from production collide, each with its own rival, and
	// so does a pod without an index, with all of them.
	again := taskPods("mapped-again", creates, func(i int, pod *corev1.Pod) {
		pod.Labels["run_id"] = "mapped"
		pod.Labels["map_index"] = fmt.Sprint(i)
		if i%2 == 1 {
			delete(pod.Labels, "map_index")
		}
	})
	got = together(t.Context(), again, func(int) client.Client { return clients["production"] }, nil)
	if got.forbidden != creates {
		t.Errorf("production beside alpha: %v", &got)
	}
	remove(t, podsOf(t, "mapped"))
}

// Mapped pods of one environment and an unmapped one of the other, at the same
// moment: either the one is admitted or any of the others.
func TestMappedBesideUnmapped(t *testing.T) {
	shared.Run(t, plane)
	clients := solepod.Airflows(t, plane, namespace)
	unmapped := 0
	for round := range 25 {
		run := fmt.Sprintf("family-%d", round)
		pods := taskPods(run, creates, func(i int, pod *corev1.Pod) {
			if i > 1 {
				pod.Labels["map_index"] = fmt.Sprint(i)
			}
		})
		together(t.Context(), pods, func(i int) client.Client {
			if i > 1 {
				return clients["alpha"]
			}
			return clients["production"]
		}, nil)
		byEnvironment := map[string]int{}
		left := podsOf(t, run)
		for _, pod := range left {
			byEnvironment[pod.Labels["airflow-environment"]]++
		}
		if len(byEnvironment) > 1 || byEnvironment["production"] > 1 {
			t.Errorf("%s: pods by environment: %v", run, byEnvironment)
		}
		unmapped += byEnvironment["production"]
		remove(t, left)
	}
	t.Logf("the unmapped pod was first in %d rounds", unmapped)
}

// Both declared: one of each environment is admitted, never a third pod.
func TestDeclared(t *testing.T) {
	shared.Run(t, plane)
	clients := solepod.Airflows(t, plane, namespace)
	environments := []string{"alpha", "production"}
	var total tally
	for round := range 25 {
		run := fmt.Sprintf("declared-%d", round)
		pods := taskPods(run, creates, func(i int, pod *corev1.Pod) {
			pod.Labels["airflow-environment"], pod.Labels["solepod.io/declared"] = environments[i%2], "v1"
		})
		got := together(t.Context(), pods, func(i int) client.Client { return clients[environments[i%2]] }, nil)
		total.add(got)
		byEnvironment := map[string]int{}
		left := podsOf(t, run)
		for _, pod := range left {
			byEnvironment[pod.Labels["airflow-environment"]]++
		}
		if byEnvironment["alpha"] != 1 || byEnvironment["production"] != 1 || got.admitted != 2 {
			t.Errorf("%s: %v, pods by environment: %v", run, &got, byEnvironment)
		}
		remove(t, left)
	}
	t.Logf("%v", &total)
}

// Try 2 while the pod of try 1 is live, from many clients at once.
func TestRetries(t *testing.T) {
	retry := func(t *testing.T, run string) (got tally, live []string) {
		clients := solepod.Airflows(t, plane, namespace)
		first := taskPods(run, 1, nil)
		if err := clients["alpha"].Create(t.Context(), first[0]); err != nil {
			t.Fatal(err)
		}
		first[0].Finalizers = []string{"test.solepod.io/hold"} // to see what was done to it
		if err := plane.Admin.Update(t.Context(), first[0]); err != nil {
			t.Fatal(err)
		}
		second := taskPods(run+"-retry", creates, func(_ int, pod *corev1.Pod) {
			pod.Labels["run_id"] = run
			pod.Labels["try_number"] = "2"
		})
		got = together(t.Context(), second, func(int) client.Client { return clients["alpha"] }, nil)
		for _, pod := range podsOf(t, run) {
			if pod.DeletionTimestamp == nil && pod.Labels["already_checked"] != "True" {
				live = append(live, "try "+pod.Labels["try_number"])
			}
		}
		if err := plane.Admin.Get(t.Context(), client.ObjectKeyFromObject(first[0]), first[0]); err != nil {
			t.Fatal(err)
		}
		first[0].Finalizers = nil
		if err := plane.Admin.Update(t.Context(), first[0]); err != nil {
			t.Fatal(err)
		}
		remove(t, podsOf(t, run))
		return got, live
	}
	t.Run("Allow", func(t *testing.T) {
		shared.Run(t, plane)
		got, live := retry(t, "retries-allow")
		if got.admitted != 1 || got.other != 0 || fmt.Sprint(live) != "[try 1 try 2]" && fmt.Sprint(live) != "[try 2 try 1]" {
			t.Errorf("%v, live: %v", &got, live)
		}
	})
	t.Run("Supersede", func(t *testing.T) {
		if mayDelete(t) {
			t.Error("solepod may delete pods without retries: Supersede")
		}
		g := shared.Own(t, plane, solepod.Options{
			Replicas: replicas, Values: []string{"config.retries=Supersede"},
			Config: "apiVersion: solepod.io/v1alpha1\nkind: Configuration\nretries: Supersede\n",
		})
		got, live := retry(t, "retries-supersede")
		if got.admitted != 1 || got.other != 0 || fmt.Sprint(live) != "[try 2]" {
			t.Errorf("%v, live: %v", &got, live)
		}
		superseded := 0
		for _, replica := range g.Replicas {
			superseded += strings.Count(logOf(t, replica), "msg=Superseded")
		}
		if superseded != 1 {
			t.Errorf("superseded %d times", superseded)
		}
	})
}

// mayDelete reports whether solepod has the permission to delete pods.
func mayDelete(t *testing.T) bool {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               serviceaccount.MakeUsername(solepod.Namespace, "solepod"),
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "delete", Resource: "pods"},
	}}
	if err := plane.Admin.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}
