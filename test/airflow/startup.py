"""Measure what the file of solepod costs a process of Airflow.

PYTHON startup.py: PYTHON is that of a row, which environment prints. The processes with
and without the file take turns. The times are CPU times in milliseconds.
"""

import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

FILE = pathlib.Path(__file__).parents[2] / "manifests" / "airflow" / "solepod_declare.py"
RUNS = int(os.environ.get("RUNS", "15"))
LOAD = """
import importlib.util, sys, time
from airflow import plugins_manager
sys.dont_write_bytecode = %r
spec = importlib.util.spec_from_file_location("solepod_declare", %r)
module = importlib.util.module_from_spec(spec)
began = time.process_time()
spec.loader.exec_module(module)
print("MS", (time.process_time() - began) * 1000)
"""
PLUGINS = """
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
"""
MISS = """
import importlib.util, sys, timeit
spec = importlib.util.spec_from_file_location("solepod_declare", %r)
module = importlib.util.module_from_spec(spec)
sys.modules["solepod_declare"] = module
spec.loader.exec_module(module)
print("NS", min(timeit.repeat(lambda: module.Finder.find_spec("os.path"), number=100000, repeat=5)) * 1e4)
"""


def run(code, home):
    """Run a process and return its CPU time in milliseconds, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = dict(os.environ, AIRFLOW_HOME=home, SOLEPOD_ENVIRONMENT="alpha", AIRFLOW__CORE__LOAD_EXAMPLES="False")
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000, process.stdout


def printed(code, home, word):
    return [float(line.split()[1]) for line in run(code, home)[1].splitlines() if line.startswith(word)][0]


def row(name, values):
    print("%-46s min %8.2f   median %8.2f" % (name, min(values), statistics.median(values)))


with tempfile.TemporaryDirectory() as folder:
    with_file, without = os.path.join(folder, "with"), os.path.join(folder, "without")
    for home in (with_file, without):
        os.makedirs(os.path.join(home, "plugins"))
    copy = os.path.join(with_file, "plugins", FILE.name)
    pathlib.Path(copy).write_text(FILE.read_text())
    times = {"without": [], "with": []}
    for _ in range(RUNS):
        times["without"].append(run(PLUGINS, without)[0])
        times["with"].append(run(PLUGINS, with_file)[0])
    row("a process that loads its plugins, without", times["without"])
    row("the same, with the file", times["with"])
    row("the file alone, not compiled before", [printed(LOAD % (True, str(FILE)), without, "MS") for _ in range(RUNS)])
    run(LOAD % (False, copy), without)
    row("the file alone, from its .pyc", [printed(LOAD % (False, copy), without, "MS") for _ in range(RUNS)])
    print("an import of another module: %.0f ns" % printed(MISS % str(FILE), without, "NS"))
