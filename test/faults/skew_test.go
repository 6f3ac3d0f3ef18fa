package faults

import (
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/claim"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/podindex"
	"github.com/solepod/solepod/pkg/policy"
	"github.com/solepod/solepod/pkg/taskpod"
	"github.com/solepod/solepod/test/fixture"
	"github.com/solepod/solepod/test/solepod"
)

// requestLife is how long after its claim a pod may still be created.
const requestLife = 34 * time.Second

// The clocks of replicas differ. A process cannot have another clock, so this is the
// real code on the real API server. Alpha's pod is claimed and can be created within
// the lifetime of a request. At the end of that, the leader reconciles the claim, and
// then production creates its pod.
func TestClockSkew(t *testing.T) {
	err := plane.Admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: solepod.Namespace}})
	if client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	known, err := cache.New(plane.Config, cache.Options{Scheme: plane.Admin.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	informer, err := known.GetInformer(t.Context(), metadata.Object("Pod"), cache.BlockUntilSynced(false))
	if err != nil {
		t.Fatal(err)
	}
	pods, err := podindex.Add(informer)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = known.Start(t.Context()) }() // until the test ends
	defaults := config.Default()
	settings := defaults.Policy()
	never := func(types.UID) bool { return false }
	claims := &claim.Claimer{API: plane.Admin, Namespace: solepod.Namespace, Settings: settings, Deleted: never}
	submission := func(run, environment string, ahead time.Duration) policy.Submission {
		p := pod(run, run+"-"+environment, "airflow-environment="+environment)
		p.UID, p.Annotations = types.UID(p.Name), map[string]string{"solepod.io/environment": "stamped"}
		return policy.Submission{
			Pod: taskpod.FromMeta(p, ""), Requester: policy.Requester{Username: environment, Environment: environment},
			Now: time.Now().Add(ahead),
		}
	}

	for name, ahead := range map[string]struct {
		alpha, leader, production time.Duration
		twice                     bool
	}{
		"equal clocks":                 {0, 0, 0, false},
		"production 20 s ahead":        {0, 0, 20 * time.Second, false},
		"production 20 s behind":       {0, 0, -20 * time.Second, false},
		"alpha 20 s ahead":             {20 * time.Second, 0, 0, false},
		"alpha 20 s behind":            {-20 * time.Second, 0, 0, false},
		"the leader 20 s ahead":        {0, 20 * time.Second, 0, false},
		"the leader 20 s behind":       {0, -20 * time.Second, 0, false},
		"all ahead":                    {5 * time.Minute, 5 * time.Minute, 5 * time.Minute, false},
		"production minutes behind":    {0, 0, -5 * time.Minute, false},
		"alpha minutes ahead":          {5 * time.Minute, 0, 0, false},
		"production 27 s ahead":        {0, 0, 27 * time.Second, true},
		"the leader 27 s ahead":        {0, 27 * time.Second, 0, true},
		"14 s each, in two directions": {-14 * time.Second, 0, 14 * time.Second, true},
		"production minutes ahead":     {0, 0, 5 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			run := fmt.Sprintf("skew-%.0f-%.0f-%.0f", ahead.alpha.Seconds(), ahead.leader.Seconds(), ahead.production.Seconds())
			first := submission(run, "alpha", ahead.alpha)
			if d, err := claims.Take(t.Context(), first, false); err != nil || !d.Allowed {
				t.Fatalf("%+v, %v", d, err)
			}
			id, _ := first.Pod.Identity()
			fixture.Eventually(t, func() error { // the leader has the claim in its cache
				return known.Get(t.Context(), client.ObjectKey{Namespace: solepod.Namespace, Name: claim.Name(id)}, &coordinationv1.Lease{})
			})
			leader := &claim.Reconciler{
				Cache: known, Pods: pods, API: plane.Admin, Namespace: solepod.Namespace, Settings: settings, Deleted: never,
				Now: func() time.Time { return time.Now().Add(requestLife + ahead.leader) },
			}
			if _, err := leader.Reconcile(t.Context(), claim.Request(claim.Name(id))); err != nil {
				t.Fatal(err)
			}
			d, err := claims.Take(t.Context(), submission(run, "production", requestLife+ahead.production), false)
			if err != nil || d.Allowed != ahead.twice || !d.Allowed && d.Reason != policy.InFlight {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}
