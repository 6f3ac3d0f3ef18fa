"""Declares the environment of this Airflow on the pods of its tasks.

An Airflow plugin. When the Kubernetes provider's operators are imported, it
wraps the static method that returns the labels of a task: both the labels of
the pod and the selector by which Airflow finds the pod are made from them. So
each contains the environment, and the selector does not match the pods of
another Airflow that runs the same DAG. The pod gets a second label, the
evidence for solepod that its selector contains the environment.

DAGs, their serialised form and other plugins are not touched. If anything
fails, the error is logged, and Airflow works as without the plugin.

Python 3.6 and newer, Airflow 2.2 and newer, apache-airflow-providers-cncf-kubernetes
1.2.0 and newer. See https://github.com/solepod/solepod/blob/main/docs/environments.md.
"""
import functools
import logging
import os
import sys

try:
    from airflow.plugins_manager import AirflowPlugin
except ImportError:  # an Airflow 3 worker with the task SDK only
    from airflow.sdk.plugins_manager import AirflowPlugin

LABEL = os.environ.get("SOLEPOD_ENVIRONMENT_LABEL") or "airflow-environment"
ENVIRONMENT = os.environ.get("SOLEPOD_ENVIRONMENT", "")

# On the pod, never in the selector: pods from before the plugin must be found.
EVIDENCE, EVIDENCE_VERSION = "solepod.io/declared", "v1"
OPERATORS = "airflow.providers.cncf.kubernetes.operators."
MODULES = frozenset(OPERATORS + name for name in ("pod", "kubernetes_pod", "spark_kubernetes"))
log = logging.getLogger("airflow.task")
logged = set()


def once(level, message, *args, **kwargs):
    if message not in logged:
        logged.add(message)
        log.log(level, "solepod: " + message, *args, **kwargs)


def declared(original, has_evidence):
    """Wraps the method that returns the labels of a task."""

    @functools.wraps(original)
    def labels(context=None, *args, **kwargs):
        found = original(context, *args, **kwargs)
        try:
            if found:  # a dry run has no context
                found = dict(found)
                found[LABEL] = ENVIRONMENT
                if has_evidence and kwargs.get("include_try_number", args[0] if args else True):
                    found[EVIDENCE] = EVIDENCE_VERSION
                once(logging.INFO, "this task declares the environment %s", ENVIRONMENT)
        except Exception:
            once(logging.ERROR, "this task does not declare its environment", exc_info=True)
        return found

    labels.solepod = True
    return labels


def own_pod(original):
    """Wraps the method that finds a pod by its stored name, whatever its labels (10.20.0)."""

    @functools.wraps(original)
    def get(self, *args, **kwargs):
        pod = original(self, *args, **kwargs)
        try:
            environment = (pod.metadata.labels or {}).get(LABEL, ENVIRONMENT) if pod else ENVIRONMENT
            if environment != ENVIRONMENT:
                log.warning("solepod: pod %s belongs to environment %s and is not taken", pod.metadata.name, environment)
                return None
        except Exception:
            once(logging.ERROR, "the environment of a pod cannot be read", exc_info=True)
        return pod

    get.solepod = True
    return get


def wrap(module):
    """Wraps the methods of the operators of a module, and returns how many it has found."""
    found = 0
    for cls in [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]:
        # Spark finds its driver by these labels from 10.8.1 on. Before, they are not on the driver.
        spark = cls.__name__ == "SparkKubernetesOperator"
        if spark and not hasattr(cls, "_setup_spark_configuration"):
            continue
        names = ["_get_ti_pod_labels"]
        if not spark:
            names.append("create_labels_for_pod")  # before 3.0.0; one result for pod and selector
        for name in names:
            method = vars(cls).get(name)
            if isinstance(method, staticmethod):
                found += 1
                if not hasattr(method.__func__, "solepod"):
                    setattr(cls, name, staticmethod(declared(method.__func__, name == "_get_ti_pod_labels")))
        method = vars(cls).get("_get_pod_from_task_state_store")
        if callable(method) and not hasattr(method, "solepod"):
            setattr(cls, method.__name__, own_pod(method))
    return found


def wrap_or_log(module):
    try:
        # Before 7.14.0, kubernetes_pod and spark_kubernetes have no labels of their own to wrap.
        if not wrap(module) and module.__name__ == OPERATORS + "pod":
            once(logging.WARNING, "tasks do not declare their environment: this version of the Kubernetes provider is unknown")
    except Exception:
        once(logging.ERROR, "tasks do not declare their environment", exc_info=True)


class Loader:
    """Loads a module with its own loader, and wraps what it has loaded."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        wrap_or_log(module)


class Finder:
    """Finds the modules of the operators as the other finders do, for Loader to load."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in MODULES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not Finder else None
            if spec:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(spec.loader)
                return spec
        return None


class SolepodPlugin(AirflowPlugin):
    name = "solepod"


if not ENVIRONMENT:
    once(logging.WARNING, "tasks do not declare their environment: SOLEPOD_ENVIRONMENT is not set")
elif not any(getattr(finder, "__module__", "") == __name__ and finder.__name__ == "Finder" for finder in sys.meta_path if isinstance(finder, type)):
    sys.meta_path.insert(0, Finder)
    for loaded in MODULES & set(sys.modules):  # Airflow before 2.5 loads plugins after the operators
        wrap_or_log(sys.modules[loaded])
