package claim

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/solepod/solepod/pkg/taskpod"
)

// strict is a fake API server with the objections of the real one, and of its
// client, to names and labels.
func strict(t *testing.T, objects ...client.Object) client.WithWatch {
	t.Helper()
	write := func(object client.Object) error {
		problems := append(metav1validation.ValidateLabels(object.GetLabels(), nil), validation.ValidateAnnotations(object.GetAnnotations(), nil)...)
		if len(problems) == 0 {
			return nil
		}
		t.Errorf("written: %v", problems.ToAggregate())
		return apierrors.NewInvalid(coordinationv1.SchemeGroupVersion.WithKind("Lease").GroupKind(), object.GetName(), problems)
	}
	return interceptor.NewClient(cluster(objects...), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if key.Namespace == "" || key.Name == "" || len(content.IsPathSegmentName(key.Name)) > 0 {
				t.Errorf("read: %q", key)
				return apierrors.NewBadRequest("client-go does not ask for this")
			}
			return c.Get(ctx, key, object, options...)
		},
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			if err := write(object); err != nil {
				return err
			}
			return c.Create(ctx, object, options...)
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			if err := write(object); err != nil {
				return err
			}
			return c.Update(ctx, object, options...)
		},
	})
}

// FuzzClaim edits a claim, and takes, repairs and inspects it. Whatever its content,
// the task can run again as soon as all its holders have expired.
func FuzzClaim(f *testing.F) {
	ofNobody := func(holders ...Holder) string {
		raw, err := json.Marshal(holders)
		if err != nil {
			f.Fatal(err)
		}
		return string(raw)
	}
	x := held("x alpha~", "x1", time.Second)
	for _, holders := range []string{
		"", "null", "[]", "[{}]", "[null]", "hello", `{"pod":"x"}`, `[{"pod":7}]`, "[" + "[", ofNobody(x), ofNobody(x, placeholderOf(x)), ofNobody(many(maxHolders)...), ofNobody(many(maxHolders + 1)...),
		`[{"pod":"x","uid":"x1","environment":"a b","claimedAt":"2026-01-01T00:00:00Z"}]`,
		`[{"pod":"x","uid":"x1","try":"\u0000","claimedAt":"2026-01-01T00:00:00Z"}]`,
		`[{"pod":"../x","uid":"x1","claimedAt":"2025-01-01T00:00:00Z"}]`,
		`[{"pod":"x/y","uid":"x1"}]`,
		`[{"pod":"x","uid":"x1","claimedAt":"9999-12-31T23:59:59-23:59"}]`,
		`[{"pod":"x","uid":"x1","claimedAt":"0000-01-01T00:00:00+23:59"}]`,
		`[{"mark":true,"pod":"x","claimedAt":"2036-01-01T00:00:00Z"}]`,
	} {
		for _, labelled := range []string{version, "", "v2"} {
			f.Add(holders, labelled, "d", "jobs", "x", "")
		}
		f.Add(holders, version, "other", "", "x", "3")
	}
	f.Fuzz(func(t *testing.T, holders, labelled, dag, namespace, podUID, index string) {
		if !utf8.ValidString(holders) {
			t.Skip("the API server takes no such annotation")
		}
		task := "n"
		if index != "" {
			task += " map_index=3"
		}
		edited := lease(task, x)
		edited.Annotations[annotationHolders] = holders
		edited.Labels[Label], edited.Labels[taskpod.LabelDAG], edited.Labels[LabelNamespace] = labelled, dag, namespace
		if problems := append(metav1validation.ValidateLabels(edited.Labels, nil), validation.ValidateAnnotations(edited.Annotations, nil)...); len(problems) > 0 {
			t.Skip("nor such labels")
		}
		there := newPod("x alpha~", types.UID(podUID))

		if id, _, _ := Inspect(edited); id != (taskpod.Identity{}) && Name(id) != edited.Name {
			t.Errorf("%v is not the identity of %s", id, edited.Name)
		}
		c := strict(t, edited.DeepCopy(), there.DeepCopy())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := claimsOn(c).Take(ctx, submission(task+" alpha~ try_number=2"), false); err != nil && !errors.Is(err, errFull) {
			t.Errorf("taking: %v", err)
		}
		readable(t, c, edited)

		c = strict(t, edited.DeepCopy(), there.DeepCopy())
		at := now
		cache := cluster(edited.DeepCopy(), there.DeepCopy())
		r := &Reconciler{Cache: cache, Pods: known{cache}, API: c, Namespace: "solepod", Settings: modelSettings, Deleted: nobody, Now: func() time.Time { return at }}
		for range 3 {
			if _, err := r.Reconcile(t.Context(), Request(edited.Name)); err != nil {
				t.Errorf("repairing: %v", err)
			}
			readable(t, c, edited)
			r.Cache, r.Pods = c, known{c}
			at = at.Add(2 * GracePeriod) // longer than a mark counts
		}
		if err := c.Delete(t.Context(), there); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Reconcile(t.Context(), Request(edited.Name)); err != nil {
			t.Errorf("repairing without a pod: %v", err)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(edited), &coordinationv1.Lease{}); !apierrors.IsNotFound(err) {
			t.Errorf("the claim is still there: %v", err)
		}
	})
}

// readable checks that a claim that was written can be read, and is bounded.
func readable(t *testing.T, c client.Reader, edited *coordinationv1.Lease) {
	t.Helper()
	var got coordinationv1.Lease
	err := c.Get(t.Context(), client.ObjectKeyFromObject(edited), &got)
	if apierrors.IsNotFound(err) || err == nil && cmp.Equal(got.Annotations, edited.Annotations) {
		return // not written
	}
	if err != nil {
		t.Fatal(err)
	}
	holders, ok := read(&got, now)
	if !ok || len(holders) > maxHolders || got.Labels[Label] != version {
		t.Errorf("written as %v, %d holders of it can be read: %.500s", got.Labels, len(holders), got.Annotations[annotationHolders])
	}
}
