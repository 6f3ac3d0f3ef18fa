package claim

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
)

// by is a holder that a user created.
func by(user string, h Holder) Holder {
	h.Requester = user
	return h
}

// environments are those that users have now.
func environments(pairs ...string) func(context.Context, string) string {
	of := map[string]string{}
	for _, pair := range pairs {
		user, environment, _ := strings.Cut(pair, "=")
		of[user] = environment
	}
	return func(_ context.Context, user string) string { return of[user] }
}

// A claim records the user that created a pod, in a bounded number of bytes.
func TestCreator(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	for _, user := range []string{"", "system:serviceaccount:airflow:worker", long} {
		c := cluster()
		claims := claimsOn(c)
		claims.Identify = environments("system:serviceaccount:airflow:worker=beta")
		n := submission("n alpha~")
		n.Requester = policy.Requester{Username: user, Environment: "alpha"}
		if d, err := claims.Take(t.Context(), n, false); err != nil || !d.Allowed {
			t.Fatal(d, err)
		}
		holders, _ := read(leaseOf(t, c, "n"), now)
		if len(holders[0].Requester) > maxRequester || holders[0].invalid() {
			t.Errorf("%d bytes", len(holders[0].Requester))
		}
		wanted := map[string]policy.Requester{
			user:    {Username: user, Environment: "alpha"},
			"other": {Username: holders[0].Requester, Environment: environments("system:serviceaccount:airflow:worker=beta")(t.Context(), user)},
		}
		if user == "" {
			wanted = map[string]policy.Requester{"": {}, "other": {}}
		}
		for asks, want := range wanted {
			got, err := claims.Creator(t.Context(), n.Pod, policy.Requester{Username: asks, Environment: "alpha"})
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%.50s, asked by %.50s: %s %v", user, asks, diff, err)
			}
		}
	}
	claims := claimsOn(cluster(lease("n", by("airflow", held("x", "x1", 0)))))
	for name, line := range map[string]string{"another pod": "n", "no claim": "n task_id=other", "no task pod": "n run_id-"} {
		got, err := claims.Creator(t.Context(), taskpod.FromMeta(newPod(line, "n1"), ""), policy.Requester{})
		if diff := cmp.Diff(policy.Requester{}, got); diff != "" || err != nil {
			t.Errorf("%s: %s %v", name, diff, err)
		}
	}
}

// A label of an environment changes between two creates of one Airflow.
func TestTakeOfTheSameAirflow(t *testing.T) {
	for name, tc := range map[string]struct {
		holder Holder
		pod    bool
		now    string // environments of users
		want   string
	}{
		"live, the same user":          {by("airflow", held("x alpha~", "x1", time.Hour)), true, "", "admit"},
		"in flight, the same user":     {by("airflow", held("x alpha~", "x1", time.Second)), false, "", "admit"},
		"live, of its environment now": {by("triggerer", held("x alpha~", "x1", time.Hour)), true, "triggerer=beta", "admit"},
		"live, of another":             {by("triggerer", held("x alpha~", "x1", time.Hour)), true, "triggerer=alpha", "DuplicateEnvironment"},
		"live, unknown":                {held("x alpha~", "x1", time.Hour), true, "", "DuplicateEnvironment"},
		"the name was reused":          {by("airflow", held("x alpha~", "x0", time.Hour)), true, "", "DuplicateEnvironment"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := []client.Object{lease("n", tc.holder)}
			if tc.pod {
				objects = append(objects, newPod("x alpha~", "x1"))
			}
			claims := claimsOn(cluster(objects...))
			claims.Identify = environments(tc.now)
			n := submission("n beta~ try_number=2")
			n.Requester = policy.Requester{Username: "airflow", Environment: "beta"}
			d, err := claims.Take(t.Context(), n, false)
			got := string(d.Reason)
			if d.Allowed {
				got = "admit"
			}
			if got != tc.want || err != nil {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

// The claim of a checked pod stays while only the claim proves whose it is.
func TestClaimOfARenamedEnvironment(t *testing.T) {
	for name, tc := range map[string]struct {
		holder Holder
		now    string
		want   string
	}{
		"renamed":             {by("airflow", held("x alpha~", "x1", time.Hour)), "airflow=beta", "x/x1@1h0m0s"},
		"not renamed":         {by("airflow", held("x alpha~", "x1", time.Hour)), "airflow=alpha", "none"},
		"no environment now":  {by("airflow", held("x alpha~", "x1", time.Hour)), "", "none"},
		"declared":            {by("airflow", held("x alpha!", "x1", time.Hour)), "airflow=beta", "none"},
		"of an unknown user":  {held("x alpha~", "x1", time.Hour), "=beta", "none"},
		"labelled since then": {by("airflow", held("x", "x1", time.Hour)), "airflow=beta", "x/x1@1h0m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster(lease("x", tc.holder), checked(newPod("x alpha~", "x1")))
			r := &Reconciler{Cache: c, Pods: known{c}, API: c, Namespace: "solepod", Settings: modelSettings, Identify: environments(tc.now),
				Deleted: func(types.UID) bool { return false }, Now: func() time.Time { return now }}
			id, _ := taskpod.FromMeta(newPod("x", ""), "").Identity()
			if _, err := r.Reconcile(t.Context(), Request(Name(id))); err != nil {
				t.Fatal(err)
			}
			if got := holdersOf(t, c, "x"); got != tc.want {
				t.Errorf("holders %s, want %s", got, tc.want)
			}
		})
	}
}

// Checked pods never fill a claim.
func TestCheckedPodsMakeRoom(t *testing.T) {
	objects := []client.Object{}
	holders := many(maxHolders)
	for i := range holders {
		holders[i] = by("airflow", holders[i])
		holders[i].Environment = "alpha"
		objects = append(objects, checked(newPod(holders[i].Pod+" alpha~", holders[i].UID)))
	}
	c := cluster(append(objects, lease("n", holders...))...)
	claims := claimsOn(c)
	claims.Identify = environments("airflow=beta")
	n := submission("n beta~")
	n.Requester = policy.Requester{Username: "airflow", Environment: "beta"}
	if d, err := claims.Take(t.Context(), n, false); err != nil || !d.Allowed {
		t.Fatal(d, err)
	}
	if after, ok := read(leaseOf(t, c, "n"), now); !ok || len(after) != maxHolders || after[maxHolders-1].UID != "n1" {
		t.Errorf("%d holders", len(after))
	}
}
