package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/audit"
	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/taskpod"
)

// enoughCollisions is the number of collisions that separation reads the pods of.
const enoughCollisions = 20

// separation looks for a label by which the users of several Airflows separate their pods
// already: a key that has different values on pods that are otherwise of one task. From
// provider 7.4.1 on, the labels of the operator are part of its selector.
func separation(scan func() (scan, error)) func(*Installation, context.Context, config.Configuration) (finding, error) {
	return func(i *Installation, ctx context.Context, settings config.Configuration) (finding, error) {
		s, err := scan()
		if err != nil {
			return finding{}, err
		}
		collisions := s.report.Collisions
		if len(collisions) == 0 {
			return ok("no pods collide"), nil
		}
		var keys map[string]bool // those of all collisions
		for _, collision := range collisions[:min(len(collisions), enoughCollisions)] {
			own, err := i.differing(ctx, collision, settings.EnvironmentLabel)
			if err != nil {
				return finding{}, err
			}
			if own == nil {
				continue
			}
			if keys == nil {
				keys = own
			}
			maps.DeleteFunc(keys, func(key string, _ bool) bool { return !own[key] })
		}
		if len(keys) == 0 {
			return ok("no label separates the pods that collide"), nil
		}
		return warning("pods that collide have different values of the label %s", strings.Join(slices.Sorted(maps.Keys(keys)), ", ")), nil
	}
}

// differing returns the keys of labels that have another value on each pod of a collision.
// It returns nil if the collision is over.
func (i *Installation) differing(ctx context.Context, collision audit.Collision, environmentLabel string) (map[string]bool, error) {
	// The operator adds these to the pod, not to its selector.
	ignored := append(taskpod.AirflowLabels(), environmentLabel, "airflow_version", "airflow_kpo_in_cluster")
	values := map[string]map[string]bool{}
	for _, ref := range collision.Pods {
		pod := metadata.Object("Pod")
		if err := i.Client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, pod); err != nil {
			if client.IgnoreNotFound(err) == nil {
				return nil, nil //nolint:nilnil // as documented
			}
			return nil, fmt.Errorf("reading pod %s/%s: %w", ref.Namespace, ref.Name, err)
		}
		for key, value := range pod.Labels {
			if slices.Contains(ignored, key) || strings.HasPrefix(key, "solepod.io/") {
				continue
			}
			if values[key] == nil {
				values[key] = map[string]bool{}
			}
			values[key][value] = true
		}
	}
	keys := map[string]bool{}
	for key, different := range values {
		if len(different) == len(collision.Pods) {
			keys[key] = true
		}
	}
	return keys, nil
}
