"""Where torch.compile cannot work, whatever the reason, one line says so and the same functions run uncompiled."""

import getpass
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from dreamlib._engine import compilation
from dreamlib._engine.compilation import CACHE_VARIABLE, compilation_works, unwritable_cache
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute

# torch.compile imports parts of torch that torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
HEADERLESS = """#!/bin/sh
case "$1" in --version|-v|-dumpfullversion) echo "g++ 12.2.0"; exit 0;; esac
echo "main.cpp:1:10: fatal error: omp.h: No such file or directory" >&2
exit 1
"""


@pytest.fixture
def untried(compiles, monkeypatch, tmp_path):
    """Nothing known of this machine yet, and nothing compiled.

    ``compiles`` comes first, because torch keeps the vector instructions that its first compiler supports, and a broken
    compiler supports none.
    """
    import torch._dynamo

    monkeypatch.setattr(compilation, "_works", {})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "compiled"))
    unwritable_cache.cache_clear()
    torch._dynamo.reset()
    yield
    unwritable_cache.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def blocked(tmp_path):
    """A path below which nothing can be made, not even by root: a file is in the way."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("#!/bin/sh\nexit 1\n", "No working C++ compiler found"),
        (HEADERLESS, "C++ compile error: main.cpp:1:10: fatal error: omp.h: No such file or directory"),
    ],
)
def test_a_compiler_that_fails_is_one_warning_and_the_uncompiled_path(untried, tiny, tmp_path, caplog, program, told):
    from torch._inductor import config

    compiler, asked = tmp_path / "g++", Compute(compile=True)
    compiler.write_text(program)
    compiler.chmod(0o755)
    assert asked.describe()["compiled"], "nothing tried yet"
    with config.patch({"cpp.cxx": (None, str(compiler)), "compile_threads": 1}):
        networks = [CompiledNetwork(tiny(), asked) for _ in range(2)]
        assert [network.compile for network in networks] == [False, False]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "dreamlib"]
    assert told in warning and "running uncompiled" in warning and "Install g++" in warning
    assert len(warning.splitlines()) == 1
    assert not asked.describe()["compiled"]
    assert networks[0].features({}, torch.zeros(2, 1, 8, 8)).shape[0] == 2


def test_a_folder_that_cannot_be_written_is_one_warning_and_a_temporary_folder(untried, blocked, monkeypatch, caplog):
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked))
    assert not compilation_works(CPU)
    assert f"cannot write {blocked}: Not a directory" in caplog.text and "make the folder writable" in caplog.text
    assert Path(os.environ[CACHE_VARIABLE]).is_dir()


def test_without_a_home_and_a_name_of_the_user_it_compiles(compiler, untried, blocked, monkeypatch, tmp_path):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 12345")

    from torch._inductor import config

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(blocked))
    monkeypatch.setattr(getpass, "getuser", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with config.patch(compile_threads=1):
        assert compilation_works(CPU)
    assert list(tmp_path.glob("torchinductor_*"))


def test_optimisers_step_also_where_no_code_can_be_kept(blocked):
    """In a process of its own: torch makes the folder when parts of it are imported, which an optimiser does."""
    program = (
        "import torch; from dreamlib._engine.compute import Compute; Compute.resolve('cpu');"
        "p = torch.nn.Parameter(torch.ones(1)); p.grad = torch.ones(1); torch.optim.SGD([p], 0.25).step();"
        "print(p.item())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), CACHE_VARIABLE: str(blocked)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "0.75\n", done.stderr


def test_a_run_without_an_iteration_waits_for_no_compiler():
    """In a process of its own: importing torch's compiler takes seconds, and every baseline is such a run."""
    program = """
import sys, torch
from dreamlib import Distiller
from dreamlib._engine.compute import Compute
from dreamlib.data import create
from dreamlib.data.types import LabeledImages
from dreamlib.settings import DistillParams
from dreamlib.synthetic.initial import fill, random_rows

digits, iterations = create("digits"), int(sys.argv[1])
compute = Compute(compile=iterations == 0)  # with an iteration, its optimiser imports the compiler in any case
images = LabeledImages(torch.rand(80, 1, 8, 8), torch.arange(80) % 10, num_classes=10)
start = fill(images, random_rows(images, 1, seed=0), ipc=1, factor=1, rule="single")
settings = DistillParams(outer_iterations=iterations, inner_iterations=1, real_batch=4)
Distiller(start, images, digits.info, settings, ("convnet", {"width": 8}), compute, seed=0).run()
print("torch._dynamo" in sys.modules)
"""
    for iterations, imported in ((0, "False\n"), (1, "True\n")):
        command = [sys.executable, "-c", program, str(iterations)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.stdout == imported, done.stderr
