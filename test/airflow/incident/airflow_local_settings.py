"""Bind pods to the only node, as there is no scheduler, and make them end."""

import os


def pod_mutation_hook(pod):
    pod.spec.node_name = "kwok-node"
    if end := os.environ.get("POD_ENDS"):
        pod.metadata.annotations = {**(pod.metadata.annotations or {}), "test.solepod.io/end": end}
    if os.environ.get("POLICY"):
        pod.metadata.labels["hook"] = "ran"


def task_policy(task):
    if os.environ.get("POLICY"):
        task.labels = {**task.labels, "policy": "ran"}
