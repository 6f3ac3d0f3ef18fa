"""The cluster policy of manifests/airflow, run by the real Airflow with the real
provider: it is Airflow that imports and applies it, when it loads DAGs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[3] / "manifests" / "airflow"
LABEL = "airflow-environment"

DAG = """
from datetime import datetime
try:
    from airflow.sdk import DAG, task
except ImportError:
    from airflow import DAG
    from airflow.decorators import task
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
try:
    from airflow.providers.standard.operators.empty import EmptyOperator
except ImportError:
    from airflow.operators.empty import EmptyOperator

class Derived(KubernetesPodOperator):
    pass

def pod(task_id, cls=KubernetesPodOperator, **kwargs):
    return cls(task_id=task_id, name=task_id, image="busybox", **kwargs)

with DAG(dag_id="policy", start_date=datetime(2023, 3, 1), schedule=None):
    pod("plain")
    pod("labelled", labels={"team": "data"})
    pod("wrong", labels={"airflow-environment": "alpha"})
    pod("derived", cls=Derived)
    EmptyOperator(task_id="empty")
    KubernetesPodOperator.partial(task_id="mapped", name="mapped", image="busybox", labels={"team": "data"}).expand(cmds=[["a"], ["b"]])
    KubernetesPodOperator.partial(task_id="mapped_labels", name="x", image="busybox").expand(labels=[{"a": "1"}, {"b": "2"}])
    KubernetesPodOperator.partial(task_id="mapped_kwargs", name="x", image="busybox").expand_kwargs([{"labels": {"a": "1"}}, {"cmds": ["b"]}])
    @task.kubernetes(image="python:3.11")
    def decorated():
        pass
    decorated()
    try:
        from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
    except ImportError:  # before 8.0.0
        KubernetesJobOperator = KubernetesPodOperator
    pod("job", cls=KubernetesJobOperator)
"""

# Prints what Airflow has made of each task: its labels, and the selector by
# which its operator will look for its pod.
LOAD = """
import json, sys
from importlib.metadata import version
from types import SimpleNamespace
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
out = {
    "errors": "".join(str(error) for error in bag.import_errors.values()),
    "provider": version("apache-airflow-providers-cncf-kubernetes"),
}
for dag in bag.dags.values():
    for task in dag.tasks:
        if hasattr(task, "partial_kwargs"):
            out[task.task_id] = [task.partial_kwargs.get("labels"), task.expand_input.value]
        elif hasattr(task, "_build_find_pod_label_selector"):
            ti = SimpleNamespace(dag_id=dag.dag_id, task_id=task.task_id, map_index=-1, try_number=1)
            context = {"ti": ti, "run_id": "r", "dag": SimpleNamespace(parent_dag=None)}
            out[task.task_id] = [task.labels, task._build_find_pod_label_selector(context)]
        else:
            out[task.task_id] = getattr(task, "labels", None)
print("RESULT " + json.dumps(out, default=str))
"""


def load(tmp_path, dag, environment="production", settings=SHIPPED):
    """Let Airflow load a DAG with the shipped airflow_local_settings.py in place."""
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "dag.py").write_text(dag)
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": str(settings),
        "SOLEPOD_ENVIRONMENT": environment,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    return subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "dags")], env=env, capture_output=True, text=True, check=False
    )


def tasks_of(run):
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    tasks = tasks_of(load(tmp_path_factory.mktemp("airflow"), DAG))
    assert tasks.pop("errors") == ""
    return tasks


DECLARED = {LABEL: "production"}


@pytest.mark.parametrize(
    ("task", "labels"),
    {
        "plain": DECLARED,
        "labelled": {"team": "data", **DECLARED},
        "wrong": DECLARED,
        "derived": DECLARED,
        "decorated": DECLARED,
        "job": DECLARED,
    }.items(),
)
def test_declares(tasks, task, labels):
    got, selector = tasks[task]
    assert got == labels
    provider = tuple(map(int, tasks["provider"].split(".")))
    assert (f"{LABEL}=production" in selector.split(",")) == (provider >= (7, 4, 1))


def test_declares_mapped_tasks(tasks):
    assert tasks["mapped"][0] == {"team": "data", **DECLARED}
    assert tasks["mapped_labels"] == [None, {"labels": [{"a": "1", **DECLARED}, {"b": "2", **DECLARED}]}]
    assert tasks["mapped_kwargs"] == [None, [{"labels": {"a": "1", **DECLARED}}, {"cmds": ["b"], "labels": DECLARED}]]


def test_leaves_other_operators_alone(tasks):
    assert tasks["empty"] is None


def test_labels_that_are_not_known_are_a_violation(tmp_path):
    dag = DAG.replace('labels=[{"a": "1"}, {"b": "2"}]', "labels=EmptyOperator(task_id='x').output")
    errors = tasks_of(load(tmp_path, dag))["errors"]
    assert "The labels of task mapped_labels are only known when it runs: include airflow-environment: production" in errors


@pytest.mark.parametrize("environment", ["", "two words", "-x", "x" * 64])
def test_a_name_is_required(tmp_path, environment):
    run = load(tmp_path, DAG, environment)
    assert run.returncode != 0
    assert f"SOLEPOD_ENVIRONMENT={environment!r} does not name this Airflow environment" in run.stderr


def test_the_single_dag(tmp_path):
    """dag.py declares by itself, without the policy."""
    tasks = tasks_of(load(tmp_path, (SHIPPED / "dag.py").read_text(), settings=tmp_path))
    assert tasks["errors"] == ""
    assert tasks["export-action-log"][0] == DECLARED
    assert tasks["notify"][0] == {"team": "data", **DECLARED}
