"""Print the labels and the selector that this provider, with the plugin of solepod,
makes of awkward names, one JSON object a line: test data for pkg/taskpod."""

import json
import os
import sys
from types import SimpleNamespace

os.environ["SOLEPOD_ENVIRONMENT"] = "production"
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "manifests", "airflow"))
import solepod_declare  # noqa: E402,F401

try:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
except ImportError:  # an older provider
    from airflow.providers.cncf.kubernetes.operators.kubernetes_pod import KubernetesPodOperator

NAMES = {
    "plain": ("foo-bar-dag-id", "foo-bar-task-id", "scheduled__2023-03-08T01:30:00+00:00"),
    "unicode": ("überführung", "задача", "manual__2023-03-08T01:30:00+00:00"),
    "only unicode": ("日本", "日本", "日本"),
    "250 characters": ("d" * 250, "t" * 250, "r" * 250),
    "63 and 64 characters": ("d" * 63, "t" * 64, "r" * 63),
    "dots": ("team.dag.v1", "group.inner.task", "backfill__2023-03-08T01:30:00+00:00"),
    "blanks": ("a dag", "a task", "a run"),
    "edges": ("-dag-", "_task_", ".run."),
    "case": ("Dag", "TASK", "Manual__X"),
    "task group": ("dag", "group__1.task__2", "dataset_triggered__2023-03-08T01:30:00.123456+00:00"),
}

for name, (dag_id, task_id, run_id) in NAMES.items():
    for map_index in (-1, 0, 19):
        operator = KubernetesPodOperator(task_id="x", name="x", image="x")
        dag = SimpleNamespace(dag_id=dag_id, parent_dag=None, is_subdag=False)
        ti = SimpleNamespace(dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=map_index, try_number=2)
        context = {"ti": ti, "run_id": run_id, "dag": dag, "task_instance": ti}
        print(
            json.dumps(
                {
                    "name": f"{name}, map index {map_index}",
                    "labels": {**(operator.labels or {}), **operator._get_ti_pod_labels(context)},
                    "selector": operator._build_find_pod_label_selector(context),
                },
                sort_keys=True,
                ensure_ascii=False,
            )
        )
