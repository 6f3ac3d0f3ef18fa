"""Run the task of a DAG as Airflow does, and print what became of it.

run.py FILE: the DAG file. LOGICAL_DATE makes the run, and with it the run_id, that
of another Airflow's. TRY is the number of the try, and STORED the pod whose name an
earlier try has stored. With KIND=mapped, the tasks run at once.
"""

import inspect
import json
import os
import sys
import traceback
from datetime import datetime, timezone

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag

try:
    from airflow.sdk.definitions import dag as module
except ImportError:
    from airflow.models import dag as module

from airflow import settings
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session


def as_try(number):
    """Make dag.test run the task with this try number. It does not count tries."""
    run = module._run_task

    def start(ti, session=None, **arguments):
        if session:
            arguments["session"] = session
            session.add(ti)
        if "_try_number" in type(ti).__mapper__.attrs:
            ti._try_number = number - 1  # before Airflow 2.10, one less while the task does not run
        else:
            ti.try_number = number
        if session:
            session.commit()
        return run(ti=ti, **arguments)

    module._run_task = start


def stored(pod):
    """Store the name of a pod as the provider does from 10.20.0 on. dag.test removes
    what an earlier try has stored."""
    from airflow.models.dagrun import DagRun
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.providers.cncf.kubernetes.operators.pod import POD_IDENTIFIER_STATE_KEY

    run, (namespace, name) = module._run_task, pod.split("/")

    def start(ti, **arguments):
        with create_session() as session:
            of = session.query(DagRun).filter_by(dag_id=ti.dag_id, run_id=ti.run_id).one()
            session.add(
                TaskStateStoreModel(
                    dag_run_id=of.id, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=-1,
                    key=POD_IDENTIFIER_STATE_KEY, value=json.dumps({"name": name, "namespace": namespace}),
                )
            )
        return run(ti=ti, **arguments)

    module._run_task = start


def at_once(count):
    """Make dag.test run this many task instances concurrently, each in a process."""
    run, children = module._run_task, []

    def start(ti, session=None, **arguments):
        if session:
            session.commit()  # or it would keep the database locked
        child = os.fork()
        if child:
            children.append(child)
            if len(children) == count:
                for child in children:
                    os.waitpid(child, 0)
                if session:
                    session.expire_all()
            return None
        try:
            settings.reconfigure_orm(disable_connection_pool=True)  # the parent's connections are not for us
            if not session:
                run(ti=ti, **arguments)
            else:
                with create_session() as session:
                    own = session.merge(ti)
                    own.task = ti.task
                    run(ti=own, session=session, **arguments)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(0)

    module._run_task = start


bag = DagBag(sys.argv[1])
if bag.import_errors:
    sys.exit(str(bag.import_errors))
(dag,) = bag.dags.values()
date = datetime.fromisoformat(os.environ["LOGICAL_DATE"]).replace(tzinfo=timezone.utc)
if os.environ.get("KIND") == "mapped":
    at_once(int(os.environ.get("MAPPED", "20")))
if number := os.environ.get("TRY"):
    as_try(int(number))
if pod := os.environ.get("STORED"):
    stored(pod)
arguments = inspect.signature(dag.test).parameters
try:
    # Airflow 3 names a run after the time after which it may run.
    dag.test(**{name: date for name in ("execution_date", "logical_date", "run_after") if name in arguments})
except Exception:
    traceback.print_exc()  # before Airflow 2.6, a task's error

with create_session() as session:
    states = {
        ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": str(getattr(ti.state, "value", ti.state))
        for ti in session.query(TaskInstance).filter(TaskInstance.dag_id == dag.dag_id)
    }
print("RESULT " + json.dumps(states))
