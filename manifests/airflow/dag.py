"""Declare the environment in a single DAG, without a cluster policy.

A task with its own labels replaces those of default_args, so it must repeat the
environment.
"""

import os
from datetime import datetime

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

ENVIRONMENT = {"airflow-environment": os.environ["SOLEPOD_ENVIRONMENT"]}

with DAG(
    dag_id="export",
    start_date=datetime(2023, 3, 1),
    schedule=None,
    default_args={"labels": ENVIRONMENT},
):
    KubernetesPodOperator(task_id="export-action-log", name="export-action-log", image="busybox:1.36")
    KubernetesPodOperator(task_id="notify", name="notify", image="busybox:1.36", labels={"team": "data", **ENVIRONMENT})
