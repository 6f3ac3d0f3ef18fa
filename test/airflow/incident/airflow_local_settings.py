"""There is no scheduler: pods are bound to the one node, and end as told."""

import os


def pod_mutation_hook(pod):
    pod.spec.node_name = "kwok-node"
    if end := os.environ.get("POD_ENDS"):
        pod.metadata.annotations = {**(pod.metadata.annotations or {}), "test.solepod.io/end": end}
