"""Where to compute: what a name stands for, and the devices that are refused."""

from pathlib import Path

import pytest
import torch

from dreamlib._engine.compute import Compute, bfloat16_is_native
from pipeline.params import find_root, read_params
from pipeline.project import Project, Setting
from pipeline.stages.distillation import parameter_hash

ROOT = find_root(Path(__file__).parent)


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
        ("cuda:2", 2, "torch sees 2 devices: use cuda:0 to cuda:1"),
    ],
)
def test_a_device_this_machine_lacks_is_refused(gpus, name, count, said):
    gpus(count)
    with pytest.raises(ValueError, match=said):
        Compute.resolve(name)


@pytest.fixture
def cpu(monkeypatch):
    """A CPU of such capabilities, as far as torch is asked."""

    monkeypatch.setattr("dreamlib._engine.compute.compilation_works", lambda device: device.type == "cpu")

    def has(*names, onednn=True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True) | {"amx_int8": False})
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)

    return has


@pytest.mark.parametrize(
    ("able", "precision"),
    [
        (("avx2",), "float32"),
        (("avx2", "avx512_f", "avx512_bw"), "float32"),
        (("avx512_f", "avx512_bf16"), "bfloat16"),
        (("avx512_f", "amx_bf16"), "bfloat16"),
        (("neon",), "float32"),
        (("neon", "bf16"), "bfloat16"),
    ],
)
def test_auto_is_half_precision_where_the_cpu_has_it_and_code_is_compiled(cpu, monkeypatch, able, precision):
    cpu(*able)
    assert Compute.resolve("cpu", "auto", compile=True).describe()["precision"] == precision
    assert Compute.resolve("cpu", "auto").dtype == torch.float32
    cpu(*able, onednn=False)
    assert Compute.resolve("cpu", "auto", compile=True).dtype == torch.float32
    cpu(*able)
    monkeypatch.setattr("dreamlib._engine.compute.compilation_works", lambda device: False)
    assert Compute.resolve("cpu", "auto", compile=True).dtype == torch.float32, "no compiler"


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_has_half_precision_from_ampere_on(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_is_native(torch.device("cuda")) is native


def test_half_precision_that_is_asked_for_stays_and_is_warned_of_where_it_is_slow(cpu, caplog):
    cpu("avx512_bf16")
    assert Compute.resolve("cpu", "bfloat16").dtype == torch.bfloat16 and not caplog.records
    cpu("avx2")
    assert Compute.resolve("cpu", "bfloat16").dtype == torch.bfloat16
    assert "cpu has no bfloat16 instructions" in caplog.text and "precision: auto" in caplog.text
    caplog.clear()
    assert Compute.resolve("cpu", "float64").dtype == torch.float64 and not caplog.records


def test_a_set_is_traced_to_the_format_that_auto_stood_for(cpu):
    params, setting = read_params(ROOT).model_copy(update={"budget": "paper"}), Setting("dream", 1, 0)

    def traced(precision):
        asked = params.compute.model_copy(update={"device": "cpu", "precision": precision, "threads": 0})
        return parameter_hash(Project(ROOT, params.model_copy(update={"compute": asked})), setting)

    cpu("avx2")
    plain = traced("auto")
    assert plain == traced("float32") != traced("bfloat16")
    cpu("avx512_bf16")
    assert traced("auto") == traced("bfloat16") and traced("float32") == plain


def test_a_set_is_traced_to_whether_its_loops_were_compiled(cpu):
    cpu("avx2")
    params, setting = read_params(ROOT), Setting("dream", 1, 0)
    quick = params.budgets["quick"]
    hashes = [
        parameter_hash(Project(ROOT, params.model_copy(update={"budget": "quick", "budgets": budgets})), setting)
        for budgets in ({"quick": quick.model_copy(update={"compile": compiled})} for compiled in (False, True))
    ]
    assert hashes[0] != hashes[1]
