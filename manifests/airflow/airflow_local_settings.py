"""Declare the Airflow environment in the labels of every KubernetesPodOperator.

Airflow finds its task pods by a selector that contains the operator's own labels
(provider 7.4.1 and later). With this cluster policy, the selectors of two Airflow
deployments differ for every task, and solepod admits the pods of both.

Put this file on the PYTHONPATH of scheduler, workers, triggerer and DAG
processor, or its content into airflowLocalSettings of the official chart. Set
SOLEPOD_ENVIRONMENT to the environment: the value of the label on the namespace of
this Airflow. If you already have an airflow_local_settings.py, call this
task_policy from yours.
"""

from __future__ import annotations

import os
import re

from airflow.exceptions import AirflowClusterPolicyViolation

LABEL = os.environ.get("SOLEPOD_ENVIRONMENT_LABEL", "airflow-environment")
ENVIRONMENT = os.environ.get("SOLEPOD_ENVIRONMENT", "")

if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", ENVIRONMENT):
    raise ValueError(
        f"SOLEPOD_ENVIRONMENT={ENVIRONMENT!r} does not name this Airflow environment: "
        "set it to the value of the label on this Airflow's namespace"
    )


def task_policy(task):
    """Add the environment label to a KubernetesPodOperator, or a subclass of it."""
    mapped = hasattr(task, "partial_kwargs")
    operator = task.operator_class if mapped else type(task)
    # Compared by name, so that DAGs without Kubernetes do not import the provider.
    if not any(base.__name__ == "KubernetesPodOperator" for base in operator.__mro__):
        return
    if not mapped:
        task.labels = _declare(task, task.labels)
    elif not _declare_in_expansion(task):
        task.partial_kwargs["labels"] = _declare(task, task.partial_kwargs.get("labels"))


def _declare_in_expansion(task):
    """Declare the environment in expanded labels; return whether the task has any."""
    expanded = getattr(task.expand_input, "value", None)
    if isinstance(expanded, dict) and "labels" in expanded:  # expand(labels=[...])
        if not isinstance(expanded["labels"], list):
            _declare(task, expanded["labels"])  # raises: they are known only at run time
        expanded["labels"] = [_declare(task, labels) for labels in expanded["labels"]]
        return True
    if isinstance(expanded, list) and any("labels" in kwargs for kwargs in expanded):  # expand_kwargs([...])
        for kwargs in expanded:
            kwargs["labels"] = _declare(task, kwargs.get("labels"))
        return True
    return False


def _declare(task, labels):
    if labels is not None and not isinstance(labels, dict):
        raise AirflowClusterPolicyViolation(
            f"The labels of task {task.task_id} are only known when it runs: "
            f"include {LABEL}: {ENVIRONMENT} in them, and give them as a dict"
        )
    return {**(labels or {}), LABEL: ENVIRONMENT}
