"""The library without the pipeline: no YAML, DVC, pandas, papermill or matplotlib, no POSIX-only module, no project."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = '''
"""Import every module of the library, then distil, save, load and evaluate a toy set."""

import importlib
import sys

BLOCKED = {"pipeline", "ruamel", "yaml", "dvc", "pandas", "papermill", "matplotlib", "nbformat", "nbconvert"}
BLOCKED |= {"curses", "fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}  # POSIX only


class WithoutBlocked:
    """A finder on sys.meta_path to which the blocked modules are not installed."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)


for name in BLOCKED & set(sys.modules):
    del sys.modules[name]
sys.meta_path[:] = [WithoutBlocked(finder) for finder in sys.meta_path]

for name in sys.argv[1:]:
    importlib.import_module(name)

import torch

from dreamlib import Distiller, SyntheticSet, evaluate, load
from dreamlib._engine.compute import Compute
from dreamlib.data import create
from dreamlib.settings import DistillParams, EvaluationParams
from dreamlib.synthetic.initial import fill, random_rows

digits, network, compute = create("digits"), ("convnet", {"width": 8}), Compute.resolve("auto", "auto", threads=1)
digits.fetch(".")
images = digits.load("train", ".")
settings = DistillParams(outer_iterations=1, inner_iterations=2, real_batch=4, sampler="representative")
start = fill(images, random_rows(images, 4, seed=0), ipc=1, factor=2, rule="single")
result = Distiller(start, images, digits.info, settings, network, compute, seed=0).run()
assert len(result.history) == 2
assert not torch.equal(result.synthetic.canvases, start.canvases)

result.synthetic.info |= {"mean": digits.info.mean, "std": digits.info.std}
result.synthetic.save("toy.safetensors")
assert load("toy.safetensors").images.shape == (40, 1, 8, 8)
protocol = EvaluationParams(repeats=1, epochs=2)
measured = evaluate(
    SyntheticSet.open("toy.safetensors"), images, digits.info, protocol, network, compute, seed=0, split="train"
)
assert 0 <= measured.mean <= 1
assert not BLOCKED & set(sys.modules)
'''


def test_the_library_runs_without_the_pipelines_packages_and_outside_a_project(tmp_path):
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "dreamlib").rglob("*.py"))]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
