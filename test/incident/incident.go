// Package incident holds what two Airflow deployments sent to one namespace on
// 2023-03-08, for tests and demo to send again.
package incident

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pod is the task pod as either Airflow submitted it, under the given name.
func Pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name,
			Labels: map[string]string{
				"dag_id":                  "foo-bar-dag-id",
				"task_id":                 "foo-bar-task-id",
				"run_id":                  "scheduled__2023-03-08T0130000000-77fa57adf",
				"kubernetes_pod_operator": "True",
				"try_number":              "1",
			},
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers:    []corev1.Container{{Name: "base", Image: "export-action-log"}},
		},
	}
}
