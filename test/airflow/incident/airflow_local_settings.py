"""Bind pods to the only node, as there is no scheduler, and make them end."""

import os


def pod_mutation_hook(pod):
    pod.spec.node_name = "kwok-node"
    if end := os.environ.get("POD_ENDS"):
        pod.metadata.annotations = {**(pod.metadata.annotations or {}), "test.solepod.io/end": end}


if os.environ.get("SOLEPOD_ENVIRONMENT"):
    import importlib.util

    spec = importlib.util.spec_from_file_location("policy", os.environ["SOLEPOD_POLICY"])
    policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(policy)
    task_policy = policy.task_policy
