package check

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/solepod/solepod/pkg/config"
	"github.com/solepod/solepod/pkg/declare"
	"github.com/solepod/solepod/pkg/metadata"
	"github.com/solepod/solepod/pkg/taskpod"
)

// declares checks the pods of Airflow in the namespaces that opt in: whether they
// have the file that declares their environment, and why not.
func (i *Installation) declares(ctx context.Context, settings config.Configuration) (finding, error) {
	var namespaces corev1.NamespaceList
	if err := i.Client.List(ctx, &namespaces, client.MatchingLabels{taskpod.LabelDeclare: declare.Enabled}); err != nil {
		return finding{}, err
	}
	if len(namespaces.Items) == 0 {
		return skipped("no namespace has the label %s=%s", taskpod.LabelDeclare, declare.Enabled), nil
	}
	declaring := map[string]int{} // pods, by environment
	var problems []string
	for _, namespace := range namespaces.Items {
		err := metadata.Each(ctx, i.Client, &corev1.PodList{}, func(object runtime.Object) error {
			declared, problem, err := i.declared(ctx, object.(*corev1.Pod), settings)
			if problem != "" && !slices.Contains(problems, problem) {
				problems = append(problems, problem)
			}
			if declared != "" {
				declaring[declared]++
			}
			return err
		}, client.InNamespace(namespace.Name))
		if err != nil {
			return finding{}, err
		}
	}
	slices.Sort(problems)
	var counts []string
	for _, name := range slices.Sorted(maps.Keys(declaring)) {
		counts = append(counts, fmt.Sprintf("%s %d", name, declaring[name]))
	}
	switch {
	case len(problems) > 0:
		return warning("%s", strings.Join(problems, "; ")), nil
	case len(counts) == 0:
		return skipped("there are no pods of Airflow in these namespaces"), nil
	}
	return ok("pods by environment: %s", strings.Join(counts, ", ")), nil
}

// declared returns the environment that a pod of Airflow declares, "" for other
// pods, or what prevents it.
func (i *Installation) declared(ctx context.Context, object *corev1.Pod, settings config.Configuration) (declared, problem string, err error) {
	raw, err := json.Marshal(object)
	if err != nil {
		return "", "", err
	}
	where := "pod " + object.Namespace + "/" + object.Name
	pod, err := declare.Decode(raw)
	if err != nil {
		return "", where + ": " + err.Error(), nil //nolint:nilerr // a problem of the pod, not of the check
	}
	if object.Labels[taskpod.LabelOperator] == taskpod.True || object.Labels[taskpod.LabelDeclare] == declare.Disabled || !pod.RunsAirflow() {
		return "", "", nil
	}
	own, err := i.identify(ctx, settings, serviceaccount.MakeUsername(object.Namespace, cmp.Or(object.Spec.ServiceAccountName, "default")))
	if err != nil {
		return "", "", err
	}
	if own == "" {
		return "", where + ": neither its ServiceAccount nor its namespace has the label " + settings.EnvironmentLabel, nil
	}
	source, injected := object.Annotations[declare.Annotation]
	if injected && source == declare.Source(settings.EnvironmentLabel, own) {
		return own, "", nil
	}
	if injected {
		return "", where + " declares another environment, or by another version of solepod: " + restart(object), nil
	}
	injection, problems := declare.Plan(pod, settings.EnvironmentLabel, own)
	switch {
	case len(problems) > 0:
		return "", where + ": " + strings.Join(problems, "; "), nil
	case injection != nil:
		return "", where + " started before it could declare: " + restart(object), nil
	}
	return own, "", nil // the user has mounted the file
}

// restart returns the command that replaces a pod.
func restart(pod *corev1.Pod) string {
	owner := metav1.GetControllerOf(pod)
	switch {
	case owner == nil:
		return "create it again"
	case owner.Kind == "ReplicaSet":
		deployment := strings.TrimSuffix(owner.Name, "-"+pod.Labels["pod-template-hash"])
		return fmt.Sprintf("kubectl rollout restart --namespace %s deployment %s", pod.Namespace, deployment)
	case owner.Kind == "StatefulSet", owner.Kind == "DaemonSet":
		return fmt.Sprintf("kubectl rollout restart --namespace %s %s %s", pod.Namespace, strings.ToLower(owner.Kind), owner.Name)
	}
	return "wait for its end"
}
