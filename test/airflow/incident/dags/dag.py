"""The task of the incident, as the environment variables want it."""

import os
import sys
from datetime import datetime

try:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
except ImportError:  # an older provider
    from airflow.providers.cncf.kubernetes.operators.kubernetes_pod import KubernetesPodOperator

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

KIND = os.environ.get("KIND", "plain")
MAPPED = int(os.environ.get("MAPPED", "20"))
PODS = int(os.environ.get("PODS", "3"))  # of a Job
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
if (tracer := os.environ.get("TRACER")) and tracer not in sys.modules:
    raise ImportError(tracer + " does not run")
if KIND == "fixed":
    POD["random_name_suffix"] = False


with DAG(dag_id="foo-bar-dag-id", start_date=datetime(2023, 3, 1), schedule=None):
    if KIND in ("plain", "fixed"):
        KubernetesPodOperator(task_id=TASK, **POD)
    elif KIND == "mapped":
        KubernetesPodOperator.partial(task_id=TASK, **POD).expand(cmds=[[f"{i}"] for i in range(MAPPED)])
    elif KIND == "deferrable":
        KubernetesPodOperator(task_id=TASK, deferrable=True, poll_interval=1, **POD)
    elif KIND == "decorated":

        @task.kubernetes(task_id=TASK, **POD)
        def export():
            pass

        export()
    elif KIND == "template":
        KubernetesPodOperator(task_id=TASK, labels={"team": "{{ dag.dag_id }}"}, **POD)
    elif KIND == "xcom":

        @task
        def labels():
            return {"team": "foo-bar-dag-id"}

        KubernetesPodOperator(task_id=TASK, labels=labels(), **POD)
    elif KIND == "callable":

        @task(task_id=TASK)
        def run(**context):
            KubernetesPodOperator(task_id="inner", **POD).execute(context)

        run()
    elif KIND == "job":
        from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator

        if os.environ.get("HOLD"):
            POD["annotations"] = {"test.solepod.io/hold": "yes"}
        KubernetesJobOperator(
            task_id=TASK, parallelism=PODS, completions=PODS, wait_until_job_complete=True, job_poll_interval=1, **POD
        )
