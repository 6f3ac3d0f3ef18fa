"""Run the task of a DAG as Airflow does, and print what became of it.

run.py FILE: the DAG file. LOGICAL_DATE makes the run, and with it the run_id, that
of another Airflow's.
"""

import inspect
import json
import os
import sys
from datetime import datetime, timezone

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session

bag = DagBag(sys.argv[1])
if bag.import_errors:
    sys.exit(str(bag.import_errors))
(dag,) = bag.dags.values()
date = datetime.fromisoformat(os.environ["LOGICAL_DATE"]).replace(tzinfo=timezone.utc)
arguments = inspect.signature(dag.test).parameters
# Airflow 3 names a run after the time after which it may run.
dag.test(**{name: date for name in ("execution_date", "logical_date", "run_after") if name in arguments})

with create_session() as session:
    states = {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(getattr(ti.state, "value", ti.state))
        for ti in session.query(TaskInstance).filter(TaskInstance.dag_id == dag.dag_id)
    }
print("RESULT " + json.dumps(states))
