// Package retire removes task pods without Airflow's noticing: it tells Airflow
// first that it is done with them.
package retire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/taskpod"
)

// Annotation is on a pod from when it is marked until it is gone. The rest can
// be done by whoever comes next, should the deletion fail.
const Annotation = "solepod.io/retired"

// ErrChanged says that the pod is gone, or another than the one decided on.
var ErrChanged = errors.New("it is gone, or has changed")

// Pod marks a pod as checked, so that Airflow no longer finds it, and deletes
// it, if it is still the very pod by its UID. With a resourceVersion, nothing of
// it may have changed since either. The reason is left in Annotation.
func Pod(ctx context.Context, w client.Writer, pod taskpod.Pod, resourceVersion, reason string) error {
	object := metadata.Object("Pod")
	object.Namespace, object.Name = pod.Namespace, pod.Name
	metadata := map[string]any{
		"uid":         pod.UID,
		"labels":      map[string]string{taskpod.LabelChecked: taskpod.True},
		"annotations": map[string]string{Annotation: reason},
	}
	if resourceVersion != "" {
		metadata["resourceVersion"] = resourceVersion
	}
	mark, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	err = w.Patch(ctx, object, client.RawPatch(types.MergePatchType, mark))
	if err == nil {
		err = w.Delete(ctx, object, client.Preconditions{UID: &pod.UID})
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return ErrChanged
	}
	if err != nil {
		return fmt.Errorf("retiring pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
