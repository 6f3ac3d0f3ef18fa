"""The plugin, with the operators of the installed provider."""

import importlib
import importlib.util
import logging
import pathlib
import sys
from types import SimpleNamespace

import pytest

FILE = pathlib.Path(__file__).parents[3] / "manifests" / "airflow" / "solepod_declare.py"
OPERATORS = "airflow.providers.cncf.kubernetes.operators."
LABEL, EVIDENCE = "airflow-environment", "solepod.io/declared"


def forget():
    """Undo what the plugin and the imports of a test have done to this process."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "") != "solepod_declare"]
    for name in [name for name in sys.modules if name.startswith(OPERATORS) or name == "solepod_declare"]:
        del sys.modules[name]


@pytest.fixture
def load(monkeypatch):
    def load(environment="alpha"):
        if environment is None:
            monkeypatch.delenv("SOLEPOD_ENVIRONMENT", raising=False)
        else:
            monkeypatch.setenv("SOLEPOD_ENVIRONMENT", environment)
        spec = importlib.util.spec_from_file_location("solepod_declare", str(FILE))
        plugin = importlib.util.module_from_spec(spec)
        sys.modules["solepod_declare"] = plugin
        spec.loader.exec_module(plugin)
        return plugin

    forget()
    yield load
    forget()


POD = "pod" if importlib.util.find_spec(OPERATORS + "pod") else "kubernetes_pod"  # an older provider


def operators(name=POD):
    return importlib.import_module(OPERATORS + name)


def context(map_index=-1):
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=map_index, try_number=1)
    dag = SimpleNamespace(dag_id="d", parent_dag=None, is_subdag=False)
    return {"ti": ti, "task_instance": ti, "run_id": "r", "dag": dag}


def labels_of(operator, map_index=-1):
    pod = operator._get_ti_pod_labels(context(map_index))
    return pod, operator._build_find_pod_label_selector(context(map_index))


@pytest.mark.parametrize("map_index", [-1, 0])
def test_pod_and_selector(load, map_index):
    load()
    pod, selector = labels_of(operators().KubernetesPodOperator(task_id="t", name="n", image="i"), map_index)
    assert (pod[LABEL], pod[EVIDENCE]) == ("alpha", "v1")
    assert LABEL + "=alpha" in selector and EVIDENCE not in selector


def test_loaded_after_the_operators(load):
    operators()
    load()
    assert labels_of(operators().KubernetesPodOperator(task_id="t", name="n", image="i"))[0][LABEL] == "alpha"


def test_loaded_twice_and_reloaded(load):
    load()
    load()
    module = importlib.reload(operators())
    assert len([finder for finder in sys.meta_path if getattr(finder, "__module__", "") == "solepod_declare"]) == 1
    assert not hasattr(module.KubernetesPodOperator._get_ti_pod_labels.__wrapped__, "solepod")


def test_subclass(load):
    load()

    class Own(operators().KubernetesPodOperator):
        pass

    assert labels_of(Own(task_id="t", name="n", image="i"))[0][EVIDENCE] == "v1"


def test_labels_of_the_user_do_not_win(load):
    load()
    pod, selector = labels_of(operators().KubernetesPodOperator(task_id="t", name="n", image="i", labels={LABEL: "beta"}))
    assert pod[LABEL] == "alpha" and LABEL + "=beta" not in selector


def test_no_context(load):
    load()
    assert operators().KubernetesPodOperator._get_ti_pod_labels() == {}


def test_without_an_environment(load, caplog):
    with caplog.at_level(logging.WARNING, "airflow.task"):
        load(None)
    assert "SOLEPOD_ENVIRONMENT is not set" in caplog.text
    assert LABEL not in operators().KubernetesPodOperator._get_ti_pod_labels(context())


def test_an_error_of_the_provider_is_raised(load):
    plugin = load()

    def broken(context=None, include_try_number=True):
        raise KeyError("dag_id")

    with pytest.raises(KeyError, match="dag_id"):
        plugin.declared(broken, True)({"x": "y"})


def test_an_error_of_the_plugin_is_logged_once(load, caplog):
    plugin = load()
    found = ["not", "labels"]
    wrapped = plugin.declared(lambda context=None: found, True)
    with caplog.at_level(logging.ERROR, "airflow.task"):
        assert wrapped({}) is found and wrapped({}) is found
    assert caplog.text.count("does not declare its environment") == 1


def test_an_unknown_provider_is_logged(load, caplog):
    plugin = load()
    module = type(sys)(OPERATORS + "pod")
    with caplog.at_level(logging.WARNING, "airflow.task"):
        plugin.wrap_or_log(module)
    assert "version of the Kubernetes provider is unknown" in caplog.text


def test_it_says_that_it_is_at_work(load, caplog):
    load()
    operator = operators().KubernetesPodOperator(task_id="t", name="n", image="i")
    with caplog.at_level(logging.INFO, "airflow.task"):
        labels_of(operator)
    assert caplog.text.count("this task declares the environment alpha") == 1


def test_a_stored_name_of_another_environment(load):
    load()
    operator = operators().KubernetesPodOperator(task_id="t", name="n", image="i")
    if not hasattr(operator, "_get_pod_from_task_state_store"):
        pytest.skip("this provider does not store names")
    for environment, taken in (("alpha", True), ("beta", False), (None, True)):
        labels = {"try_number": "1"}
        if environment:
            labels[LABEL] = environment
        pod = SimpleNamespace(metadata=SimpleNamespace(name="p", namespace="jobs", labels=labels))
        operator.__dict__["hook"] = SimpleNamespace(get_pod=lambda name, namespace, pod=pod: pod)
        store = SimpleNamespace(get=lambda key: {"name": "p", "namespace": "jobs"})
        found = operator._get_pod_from_task_state_store(dict(context(), task_state_store=store))
        assert (found is pod) == taken, environment


def test_spark(load):
    load()
    spark = operators("spark_kubernetes").SparkKubernetesOperator
    own = vars(spark).get("_get_ti_pod_labels")
    if own is None:
        pytest.skip("this provider has no labels for Spark")
    # Before 10.8.1, the labels of the task are not on the driver.
    assert hasattr(own.__func__, "solepod") == hasattr(spark, "_setup_spark_configuration")


def matches(selector, labels):
    for term in selector.split(","):
        key, _, value = term.strip("!").replace("!=", "=").partition("=")
        if term.startswith("!"):
            matched = key not in labels
        else:
            matched = (labels.get(key) == value) != ("!=" in term)
        if not matched:
            return False
    return True


def test_spark_finds_its_own_driver(load, monkeypatch):
    load()
    spark = operators("spark_kubernetes")
    if not hasattr(spark.SparkKubernetesOperator, "_setup_spark_configuration"):
        pytest.skip("this provider does not find drivers by labels")
    selectors, launched = [], {}

    class Client:
        def list_namespaced_pod(self, namespace, label_selector, **arguments):
            selectors.append(label_selector)
            return SimpleNamespace(items=[])

    class Launcher:
        pod_spec = None

        def __init__(self, **arguments):
            launched.update(arguments)

    monkeypatch.setattr(spark, "CustomObjectLauncher", Launcher)
    operator = spark.SparkKubernetesOperator(task_id="t", name="n", namespace="jobs", template_spec={"spark": {"spec": {}}})
    operator.__dict__.update(client=Client(), custom_obj_api=None, get_or_create_spark_crd=lambda launcher, context: None)
    operator._setup_spark_configuration(context())

    driver = dict(launched["template_body"]["spark"]["spec"]["driver"]["labels"], **{"spark-role": "driver"})
    assert driver[EVIDENCE] == "v1"
    assert len(selectors) == 1 and matches(selectors[0], driver)
    assert not matches(selectors[0], dict(driver, **{LABEL: "beta"}))
