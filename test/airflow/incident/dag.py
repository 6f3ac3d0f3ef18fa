"""One task in a pod, as the environment variables want it."""

import os
from datetime import datetime

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

with DAG(dag_id="foo-bar-dag-id", start_date=datetime(2023, 3, 1), schedule=None):
    KubernetesPodOperator(
        task_id="foo-bar-task-id",
        name="export-action-log",
        namespace=os.environ["NAMESPACE"],
        image="export-action-log",
        config_file=os.environ["KUBECONFIG"],
        in_cluster=False,
        get_logs=False,
        reattach_on_restart=os.environ.get("REATTACH", "True") == "True",
    )
