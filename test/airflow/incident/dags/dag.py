"""The task of the incident, as the environment variables want it."""

import os
import signal
import time
from datetime import datetime, timedelta

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

KIND = os.environ.get("KIND", "plain")
TASK = "foo-bar-task-id"
POD = {
    "name": "export-action-log",
    "namespace": os.environ["NAMESPACE"],
    "image": "export-action-log",
    "config_file": os.environ["KUBECONFIG"],
    "in_cluster": False,
    "get_logs": False,
    "reattach_on_restart": os.environ.get("REATTACH", "True") == "True",
}



def kill_the_first_worker(context):
    """Once, run the task in a child and kill that when its pod runs.

    What is left is what a killed worker leaves: a running pod that nobody watches,
    and a task to be tried again.
    """
    marker = os.path.join(os.environ["AIRFLOW_HOME"], "killed")
    if os.path.exists(marker):
        return
    open(marker, "x").close()
    child = os.fork()
    if child == 0:
        return  # to run the task
    from kubernetes import client, config

    config.load_kube_config(os.environ["KUBECONFIG"])
    while not any(
        pod.status.phase == "Running" for pod in client.CoreV1Api().list_namespaced_pod(os.environ["NAMESPACE"]).items
    ):
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError("the worker was killed")


with DAG(dag_id="foo-bar-dag-id", start_date=datetime(2023, 3, 1), schedule=None):
    if KIND == "plain":
        KubernetesPodOperator(task_id=TASK, **POD)
    elif KIND == "retry":
        KubernetesPodOperator(
            task_id=TASK,
            retries=1,
            retry_delay=timedelta(0),
            kubernetes_conn_id=None,
            pre_execute=kill_the_first_worker,
            **POD,
        )
    elif KIND == "mapped":
        KubernetesPodOperator.partial(task_id=TASK, **POD).expand(cmds=[[f"{i}"] for i in range(20)])
    elif KIND == "deferrable":
        KubernetesPodOperator(task_id=TASK, deferrable=True, poll_interval=1, **POD)
    elif KIND == "decorated":

        @task.kubernetes(task_id=TASK, **POD)
        def export():
            pass

        export()
    elif KIND == "job":
        from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator

        KubernetesJobOperator(
            task_id=TASK, parallelism=3, completions=3, wait_until_job_complete=True, job_poll_interval=1, **POD
        )
