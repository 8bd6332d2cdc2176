"""What the tests of the core share: toy images, a tiny network, digits, and a watch over the global generators."""

import os
import random
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from dreamlib._engine.compilation import compilation_works
from dreamlib._engine.compute import Compute
from dreamlib.data import create, load_split
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.networks import build

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes share the cores


@pytest.fixture
def threads_restored():
    """The number of CPU threads before the test; it is set again after it, whatever the test did."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def threads_of_a_new_thread():
    """On how many CPU threads a thread of Python that begins now computes, as a function to call."""

    def ask():
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    return ask


@pytest.fixture(scope="session")
def compiles():
    """Whether torch.compile works."""
    from torch._inductor import config  # here, because the import takes seconds

    # In this process: starting torch's pool of compiling processes takes longer than compiling.
    with config.patch(compile_threads=1):
        return compilation_works(torch.device("cpu"))


@pytest.fixture
def compiler(compiles):
    """Skips the test where torch.compile does not work."""
    if not compiles:
        pytest.skip("torch.compile does not work on this machine")


@pytest.fixture(scope="session")
def until_ended():
    """Wait until all processes are gone, or zombies where nobody waits for orphans; kill those that stay, and fail."""

    def ended(process):
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def wait(processes, patience_s=120):
        deadline = time.monotonic() + patience_s
        while (left := [process for process in processes if not ended(process)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in left:
            process.kill()
        assert left == []

    return wait


@pytest.fixture
def traces(monkeypatch):
    """How often torch.compile has traced, as a function to call; traced as for the compiler, with the C++ left out."""
    from torch._dynamo.utils import counters

    real_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: real_compile(f, backend="aot_eager", **how))
    return lambda: counters["stats"]["unique_graphs"]


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """The project as it was last committed: a run of one's own changes results. Without a repository, as it lies."""
    project, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("committed")
    archive = folder / "head.tar"
    if not (project / ".git").exists():
        return project
    subprocess.run(["git", "archive", "-o", archive, "HEAD"], cwd=project, check=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def rng():
    """seed → a generator of its own."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def toy_info():
    """(classes, channels, size, name) → a data set's description with asymmetric statistics."""

    def make(classes=3, channels=1, size=8, name="toy"):
        mean, std = (0.4, 0.5, 0.3)[:channels], (0.25, 0.3, 0.2)[:channels]
        return DatasetInfo(name, tuple("abcdefghijkl"[:classes]), channels, size, mean, std, flip=False)

    return make


@pytest.fixture(scope="session")
def toy_data():
    """Images a class: noise on a class-specific ramp, classes in turn, so that file order is not class order."""

    def make(per_class=12, classes=3, channels=1, size=8, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(classes).repeat(per_class)
        ramp = torch.linspace(0, 1, size) * ((labels + 1) / classes).view(-1, 1, 1, 1)
        noise = torch.rand(len(labels), channels, size, size, generator=generator, dtype=torch.float64)
        return LabeledImages((0.5 * noise + 0.5 * ramp).to(dtype), labels, classes)

    return make


@pytest.fixture(scope="session")
def tiny(toy_info):
    """A width-8 ConvNet for a data set, in float64 when asked."""

    def make(info=None, seed=0, double=False, **options):
        network = build("convnet", info or toy_info(), torch.Generator().manual_seed(seed), {"width": 8, **options})
        return network.double() if double else network

    return make


@pytest.fixture(scope="session")
def float64():
    """The CPU, in float64: the arbiter."""
    return Compute(torch.device("cpu"), torch.float64)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The real digits' training images, 20 a class kept aside."""
    folder = tmp_path_factory.mktemp("data")
    create("digits").fetch(folder)
    return load_split("digits", "train", folder, validation_per_class=20, seed=0)


def _global_state():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (the legacy global generator is what is watched)
    return random.getstate(), (kind, keys.tolist(), *rest), torch.get_rng_state().tolist()


@pytest.fixture
def global_generators_untouched():
    """Fails the test if it drew from, or seeded, a global generator."""
    before = _global_state()
    yield
    assert _global_state() == before
