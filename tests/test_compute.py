"""Where to compute: what a name stands for, and the devices that are refused."""

import pytest
import torch

from dreamlib.compute import Compute


@pytest.fixture
def gpus(monkeypatch):
    """A machine with that many CUDA devices, as far as torch is asked."""

    def have(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("name", "count", "chosen"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_a_name_stands_for_a_device_of_this_machine(gpus, name, count, chosen):
    gpus(count)
    assert Compute.resolve(name).device == torch.device(chosen)


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("gpu", 1, "choose auto, cpu, cuda or cuda:<number>"),
        ("mps", 0, "choose auto"),
        ("cuda:x", 1, "choose auto"),
        ("cuda", 0, "use 'auto' or 'cpu'"),
        ("cuda:0", 0, "use 'auto' or 'cpu'"),
        ("cuda:2", 2, "torch sees 2 devices: name cuda:1 or less"),
    ],
)
def test_a_device_this_machine_lacks_is_refused(gpus, name, count, said):
    gpus(count)
    with pytest.raises(ValueError, match=said):
        Compute.resolve(name)
