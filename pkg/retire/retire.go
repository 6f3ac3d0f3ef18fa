// Package retire removes task pods in a way that Airflow does not notice: it marks a
// pod as checked before it deletes the pod.
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

// Annotation is an annotation of pods that are marked and not deleted yet. If the
// deletion fails, the next reclaim repeats it.
const Annotation = "solepod.io/retired"

// ErrChanged is the error for a pod that was deleted, replaced or changed.
var ErrChanged = errors.New("the pod was deleted or has changed")

// Pod marks a pod as checked, so that Airflow no longer finds it, and deletes it. It
// returns ErrChanged if the pod has another UID or, if resourceVersion is not empty,
// another version. The reason is the value of Annotation.
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
