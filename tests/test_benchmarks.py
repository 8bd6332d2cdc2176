"""The fast path does the reference's work: same loss, same pixel gradients."""

import platform
import shutil
import time

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks import accuracy, cost, paper, reach, table
from benchmarks.__main__ import AT_ONCE, WHOLE, counted, cpu_name, interleaved
from benchmarks.reference import evaluation, matching_gradient, representatives
from benchmarks.work import INFO, fast_matching_gradient, matching_state
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import read_json, write_json
from dreamlib.data import create
from dreamlib.evaluation import evaluate
from dreamlib.networks import build
from dreamlib.networks.convnet import with_torchs_layers
from dreamlib.reference import training_step
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.trainer import Trainer, TrainSettings
from pipeline.params import Params, read_params
from pipeline.project import Setting
from pipeline.stages.clustering import run_clustering
from pipeline.stages.distillation import starting_set

MODULES = ("container", "conv", "normalization", "activation", "pooling")
SIZES = {"ipc": 2, "real": 6, "width": 16}


def test_the_benchmarks_cluster_as_many_images_as_the_quick_budget():
    assert read_params(table.ROOT).distillation("dream", 1).pool == cost.POOL


def test_the_evaluation_measured_whole_is_the_paper_budgets():
    budgets = YAML(typ="safe", pure=True).load(table.ROOT / "params.yaml")["budgets"]
    assert EvaluationParams(**budgets["paper"]["evaluation"]) == WHOLE
    assert budgets["paper"]["distillation"]["parallel_classes"] == AT_ONCE


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


# In float32 either way is as far from float64 as the few ReLU inputs within rounding of 0 make it: one of them on the
# other side moves a gradient of this size by some 1e-4.
@pytest.mark.parametrize(
    ("precision", "dtype", "bound"), [("float64", torch.float64, 1e-10), ("float32", torch.float32, 1e-3)]
)
def test_matching_step_agrees_with_the_plain_loop(precision, dtype, bound):
    state = matching_state(Compute.resolve("cpu", precision), **SIZES)
    value, pixels = matching_gradient(state, dtype)
    fast_value, fast_pixels = fast_matching_gradient(state)
    assert float(pixels.norm()) > 0
    assert relative(fast_value, value) < bound
    assert relative(fast_pixels, pixels) < bound
    apart_value, apart_pixels = fast_matching_gradient(state, parallel_classes=2, threads=1)
    assert relative(apart_value, value) < bound
    assert relative(apart_pixels, pixels) < bound


def test_bfloat16_points_where_float64_does():
    exact = matching_gradient(matching_state(Compute.resolve("cpu", "float64"), **SIZES), torch.float64)[1]
    coarse = fast_matching_gradient(matching_state(Compute.resolve("cpu", "bfloat16"), **SIZES))[1]
    cosine = torch.nn.functional.cosine_similarity(coarse.double().flatten(), exact.flatten(), dim=0)
    assert float(cosine) > 0.99


def test_training_step_agrees_with_the_plain_loop():
    compute = Compute.resolve("cpu", "float64")
    x, y = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8)
    plain, model = (
        compute.place(build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16})) for _ in "ab"
    )
    optimizer = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(model, INFO, TrainSettings(8), CompiledNetwork(model, compute))
    for _ in range(3):
        expected = training_step(plain, optimizer, INFO.normalise(x), y, 0.0, torch.Generator())
        assert float(trainer.step(x, y, torch.Generator())) == pytest.approx(float(expected), rel=1e-10)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_an_evaluation_agrees_with_the_plain_loop(toy_data, toy_info):
    info, against = toy_info(size=16), toy_data(per_class=40, size=16)
    real = toy_data(per_class=2, size=16, seed=1)
    synthetic = SyntheticSet(real.images[real.labels.argsort(stable=True)], torch.arange(3).repeat_interleave(2), 3, 2)
    how = EvaluationParams(epochs=6, repeats=3, batch=16, lr=0.05)
    compute, network = Compute.resolve("cpu", "float64"), ("convnet", {"width": 8})
    found = evaluate(synthetic, against, info, how, network, compute, seed=2, split="none").accuracies
    assert evaluation(synthetic, against, info, how, 8, 2, torch.float64) == pytest.approx(found, abs=1e-12)
    assert len(set(found)) > 1


def test_the_accuracy_program_runs_small_and_compares_what_it_says(tmp_path, capsys, monkeypatch):
    create("digits").fetch(tmp_path)
    sizes = "--ipc 1 --seeds 2 --iterations 2 --width 4 --real 8 --networks 1 --epochs 1 --evaluations 2 --threads 1"
    files = ["--data", str(tmp_path), "--output", str(tmp_path / "accuracy.json")]
    result = accuracy.main(["--dataset", "digits", "--validation", "20", "--eager", *sizes.split(), *files])
    assert read_json(tmp_path / "accuracy.json") == result
    rows = result["rows"]
    assert [(row["variant"], row["seed"]) for row in rows] == [(v, s) for s in (0, 1) for v in accuracy.VARIANTS]
    of = {(row["variant"], row["seed"]): row["accuracy"] for row in rows}
    first = result["differences"][0]
    assert (first["of"], first["from"], first["seeds"]) == ("fast", "plain", 2)
    assert first["difference"] == pytest.approx(sum(of["fast", s] - of["plain", s] for s in (0, 1)) / 2)
    assert len(result["evaluation_loops"][0]["plain"]) == len(result["evaluation_loops"][0]["library"]) == 2
    assert "fast from plain" in capsys.readouterr().out
    told = table.accuracy_text(result)
    assert told.count("fast − plain") == 1 and "over 2 seeds" in told

    whole = result["rows"].copy()
    part = tmp_path / "accuracy.part.json"
    assert not part.exists(), "a finished run is not gone on from: the next one measures anew"
    write_json(part, {**result, "rows": whole[:-1]})
    runs, run = [], accuracy.Distiller.run
    monkeypatch.setattr(accuracy.Distiller, "run", lambda self, **k: (runs.append(k["label"]), run(self, **k))[1])
    again = accuracy.main(["--dataset", "digits", "--validation", "20", "--eager", *sizes.split(), *files])
    assert runs == [whole[-1]["variant"]], "what was measured before is kept"
    assert [row["accuracies"] for row in again["rows"]] == [row["accuracies"] for row in whole]
    assert not part.exists()
    with pytest.raises(ValueError, match="multiple of"):
        accuracy.settings_of(1, 21, None, {})


def test_the_reference_has_torchs_layers_and_the_same_function():
    ours = build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16}).double()
    plain = with_torchs_layers(ours)
    assert {type(m).__module__ for m in plain.blocks[0].modules()} == {"torch.nn.modules." + m for m in MODULES}
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-12, atol=1e-12)


def test_the_references_representatives_are_the_images_of_separate_groups():
    network = build("convnet", INFO, torch.Generator().manual_seed(1), {"width": 16})
    base = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = base.repeat_interleave(5, 0) + 1e-4 * torch.rand(15, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert sorted((representatives(network, images, 3, seed=1) // 5).tolist()) == [0, 1, 2]


def test_each_kind_of_device_has_a_file_of_its_own():
    kinds = (("cpu", "bfloat16"), ("cpu", "float32"), ("cuda", "bfloat16"))
    files = [table.results_file(*kind) for kind in kinds]
    assert len(set(files)) == 3
    for (device, precision), file in zip(kinds, files, strict=True):
        machine = read_json(file)["machine"]
        assert machine["precision"] == precision and machine["device"].startswith(device)
    assert "on a CPU without" in table.speeds(None)


def test_a_gpus_table_says_shares_of_the_peak_and_hours():
    machine = {"device": "cuda (some GPU)", "cpu": "some CPU", "torch": "2", "precision": "bfloat16"}
    row = {"work": "matching", "reference_s": 0.2, "fast_s": 0.01, "ratio": 20.0, "ratio_range": [19.0, 21.0]}
    plain = {"reference_s": 0.36, "operations": 7.2e11, "iterations": 200}
    runs = [{"ipc": 1, "pool": 0, "iteration_s": 0.018}, {"ipc": 10, "pool": 384, "iteration_s": 0.009}]
    told = table.gpu_speeds(
        {"machine": machine, "peak_flops": {"bfloat16": 8e14}, "repeats": 5, "device_memory_bytes": 3 * 2**29}
        | {"rows": [row | {"operations": 4e11}], "runs": [run | plain for run in runs]}
    )
    # 4·10¹¹ operations in a hundredth of a second are 4·10¹³ a second, a twentieth of the peak.
    assert "| matching | 200.0 | 10.0 | 20.0 | 19.00 to 21.00 | 5.0% |" in told
    assert "| 1 | all | 18.0 | 20.0 | 5.0% | 1.0 |" in told and "| 10 | pool 384 | 9.0 | 40.0 | 10.0% | 0.5 |" in told
    assert "some GPU" in told and "1.5 GiB" in told and "800 · 10¹²" in told
    assert "make bench DEVICE=cuda" in table.gpu_speeds(None)


def test_a_floor_is_what_the_best_rate_seen_allows():
    row = {"operations": 4e12, "bytes": 1e9, "reference_s": 12.0}
    machine = {"precision": "bfloat16"}
    rates = {"machine": machine, "peak_flops": {"bfloat16": 1e12, "float32": 9e12}, "peak_bytes_per_s": 1e10}
    rates["convolution_flops"] = {"forward": 2e12}
    assert table.floors(row, rates) == (2.0, 0.1) and table.ratio_at_the_floor(row, rates) == 6.0
    slow = rates | {"peak_bytes_per_s": 1e8, "convolution_flops": {"forward": 5e11}}
    assert table.floors(row, slow) == (4.0, 10.0) and table.ratio_at_the_floor(row, slow) == 1.2


@pytest.mark.parametrize("file", [table.RESULTS, table.FLOAT32_RESULTS], ids=lambda file: file.stem)
def test_no_measurement_is_beyond_its_floor(file):
    measured = read_json(file)
    rows = [row for row in measured["rows"] if "operations" in row]
    assert rows and all(row["fast_s"] > max(table.floors(row, measured)) for row in rows)


def test_operations_and_bytes_counted_by_hand():
    """A 3 × 3 convolution of one 4 × 4 map into two: two operations a multiplication, two or four bytes a number."""
    conv = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
    with torch.no_grad():
        for dtype, size in ((torch.bfloat16, 2), (torch.float32, 4)):
            found = counted(lambda: conv(torch.zeros(1, 1, 4, 4)).relu(), dtype)
            assert found == {"operations": 2 * 9 * 2 * 16, "bytes": size * (16 + 18 + 32)}


def test_an_images_operations_by_hand():
    """Two a multiplication: three 3 × 3 convolutions at 32, 16 and 8 pixels, and the linear layer over 4 × 4."""
    by_hand = 2 * (9 * 3 * 128 * 32**2 + 9 * 128 * 128 * (16**2 + 8**2) + 128 * 4 * 4 * 100)
    assert cost.forward_operations(100, 3, 32) == by_hand


def test_the_model_gives_back_the_measurement_it_rests_on():
    """10 classes of 28 grey pixels at ipc 10 are a measured row: its matching operations must come out of the model."""
    result = read_json(table.RESULTS)
    real, synthetic = cost.passes(result)
    row = next(row for row in result["rows"] if row["work"] == "matching, ipc 10, 128 real")
    modelled = 10 * (128 * real + 40 * synthetic) * cost.forward_operations(10, 1, 28)
    assert modelled == pytest.approx(row["operations"], rel=0.01)
    assert 2 < real < 3.5 and 4 < synthetic < 10


def test_workers_share_what_grows_with_classes_and_not_the_networks_training():
    result = read_json(table.RESULTS)
    one, four = (cost.iteration_seconds(result, cost.Size("any", 100, 32), workers) for workers in (1, 4))
    assert {what: one[what] / four[what] for what in one} == pytest.approx(
        {"matching": 4, "clustering": 4, "network": 1}
    )


def test_the_processors_name_is_linuxs_or_what_python_knows(tmp_path):
    told = tmp_path / "cpuinfo"
    assert cpu_name(told) == (platform.processor() or platform.machine()) != ""
    told.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu\nmodel name\t: Some other\n")
    assert cpu_name(told) == "Some CPU @ 2 GHz"
    told.write_text("processor\t: 0\n")  # an ARM's file names none
    assert cpu_name(told) == cpu_name(tmp_path / "missing")


def test_what_is_timed_once_has_no_first_call_and_no_range():
    calls = []
    often, once = (interleaved(lambda: calls.append("a"), lambda: calls.append("b"), repeats) for repeats in (3, 1))
    assert calls == ["a", "b"] * (1 + 3 + 1)  # in turn, after a first call of each where there are several
    assert set(often["first_call_s"]) == {"reference", "fast"} and once["first_call_s"] == {}
    many = interleaved(lambda: time.sleep(0.01), lambda: time.sleep(0.02), 3, units=4)
    assert 0.005 <= many["fast_s"] < many["reference_s"], "of one unit"
    assert many["first_call_s"]["fast"] >= 0.02, "of all it took"
    assert once["ratio"] == pytest.approx(once["reference_s"] / once["fast_s"])
    assert table.spread({"once": True, **once}) == "measured once" and table.spread({"computed": True}) == "computed"
    assert table.spread({"once": False, "ratio_range": [2.0, 2.517]}) == "2.00 to 2.52"


@pytest.fixture
def papers_length(tmp_path, monkeypatch):
    """Settings in place of the paper's: a small network on digits, four networks of two iterations each."""
    params = paper.paper_params()
    full = params.distillation("dream", 1)
    assert full.outer_iterations * full.inner_iterations == table.PAPER_ITERATIONS
    create("digits").fetch(tmp_path)
    small = params.model_copy(
        update={
            "dataset": "digits",
            "data": params.data.model_copy(update={"directory": str(tmp_path)}),
        }
    )
    small.budgets["paper"] = small.budgets["paper"].model_copy(
        update={"network": params.network.model_copy(update={"options": {"width": 4, "depth": 1}})}
    )
    short = {"outer_iterations": 4, "inner_iterations": 2, "interval": 2, "real_batch": 8, "snapshots": 2}
    how = full.model_copy(update=short)
    monkeypatch.setattr(Params, "distillation", lambda self, method, ipc: how)
    monkeypatch.setattr(
        Params, "evaluation", lambda self, method, ipc: EvaluationParams(epochs=1, repeats=2, augmentation="none")
    )
    monkeypatch.setattr(paper, "paper_params", lambda: small)
    for module in (paper, table):
        monkeypatch.setattr(module, "PAPER", tmp_path / "paper.json")
        monkeypatch.setattr(module, "canvases_file", lambda ipc: tmp_path / f"paper-ipc{ipc}.safetensors")
    monkeypatch.setattr(paper, "compute_at_hand", Compute)
    return how


def test_a_run_of_the_papers_length_in_pieces_is_the_run_in_one_go(papers_length, capsys):
    paper.go_on(1, 30, 1.0, Compute())
    whole = paper.recorded_canvases(1)
    assert list(whole) == [4, 8]
    paper.canvases_file(1).unlink()
    seen = []
    for _ in range(4):  # no time at all: one network's iterations each
        paper.go_on(1, 30, 0.0, Compute())
        seen.append(paper.paper_run(1))
    assert [(run["iterations"], run["total"], list(run["seconds"])) for run in seen] == [
        (2, 8, ["2"]), (4, 8, ["4"]), (6, 8, ["4", "6"]), (8, 8, ["4", "8"])
    ]  # fmt: skip
    assert [len(run["pieces"]) for run in seen] == [1, 1, 1, 1]  # on one machine
    took = [run["seconds"][str(run["iterations"])] for run in seen]
    assert took == sorted(took) and seen[3]["seconds"]["4"] == took[1]
    found = paper.recorded_canvases(1)
    assert list(found) == [4, 8] and all(torch.equal(found[i], whole[i]) for i in whole)
    paper.go_on(1, 30, 1.0, Compute())
    assert "all 8 iterations at ipc 1 are done" in capsys.readouterr().out and paper.paper_run(1) == seen[3]


def test_a_run_goes_on_with_its_own_parameters_only(papers_length, monkeypatch, capsys):
    paper.go_on(1, 30, 0.0, Compute())
    before = paper.canvases_file(1).read_bytes()
    assert paper.main(["run", "--pool", "20"]) == 1
    assert "begun with --pool 30" in capsys.readouterr().err
    changed = papers_length.model_copy(update={"image_lr": 123.0})
    for how, said in ((changed, "other parameters"), (changed.model_copy(update={"image_optimizer": "adam"}), "sgd")):
        monkeypatch.setattr(Params, "distillation", lambda self, method, ipc, how=how: how)
        with pytest.raises(ValueError, match=said):
            paper.go_on(1, 30, 0.0, Compute())
    with pytest.raises(ValueError, match="pool"):
        paper.go_on(2, -1, 0.0, Compute())
    for minutes in ("nan", "0", "-3"):
        with pytest.raises(SystemExit):
            paper.main(["run", "--minutes", minutes])
        assert "give minutes above 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        paper.main(["evaluate", "--ipc", "7"])
    assert "no run at ipc 7 was begun" in capsys.readouterr().err
    assert paper.canvases_file(1).read_bytes() == before and not paper.canvases_file(2).exists()


def test_evaluations_are_kept_while_a_run_goes_on(papers_length, monkeypatch):
    for _ in range(2):
        paper.go_on(1, 30, 0.0, Compute())
    assert paper.main(["evaluate"]) == 0
    first = read_json(paper.PAPER)["1"]
    assert list(first["points"]) == ["4"] and len(first["points"]["4"]["accuracies"]) == 2
    assert first["published"] is None  # of digits there is nothing
    paper.go_on(1, 30, 0.0, Compute(dtype=torch.float64))
    assert [piece["until"] for piece in paper.paper_run(1)["pieces"]] == [4, 6]
    told = table.paper_text([paper.paper_run(1)], read_json(paper.PAPER))
    assert "float32, torch" in told and "then cpu" in told and told.count("not evaluated yet") == 1
    asked, real = [], paper.evaluate
    monkeypatch.setattr(paper, "evaluate", lambda *a, **k: (asked.append(k["label"]), real(*a, **k))[1])
    paper.main(["evaluate"])
    assert asked == ["at 6"] and read_json(paper.PAPER)["1"]["points"]["4"] == first["points"]["4"]


def test_a_run_of_the_papers_length_tells_how_far_it_is():
    machine = {"device": "some GPU", "precision": "bfloat16", "torch": "2"}
    begun = {"ipc": 1, "pool": 384, "iterations": 70, "total": 200, "seconds": {"70": 90.0, "8": 30}}
    begun["pieces"] = [{"until": 40, "machine": machine}, {"until": 70, "machine": machine | {"device": "another"}}]
    told = table.paper_text([begun], {})
    assert "Done so far: 70 of 200 iterations, on some GPU, bfloat16, torch 2, then another, bfloat16" in told
    assert "| 8 | 0.5 | not evaluated yet |" in told
    points = {"8": {"accuracies": [0.80, 0.82]}, "70": {"accuracies": [0.81, 0.83]}}
    found = {"points": points, "epochs": 9, "protocol": "idc", "device": "cpu", "published": [81.3, 0.2]}
    told = table.paper_text([begun | {"iterations": 200}], {"1": found})
    assert "all 200 iterations" in told and "of 2 networks after 9 epochs of protocol idc, trained on cpu" in told
    rows = [line for line in told.splitlines() if line.startswith("| ") and "±" in line]
    assert rows == ["| 8 | 0.5 | 81.0 ± 1.4 |", "| 70 | 1.5 | 82.0 ± 1.4 |", "| 200 (published) |  | 81.3 ± 0.2 |"]


def test_the_papers_settings_are_those_that_canvases_alone_go_on_from():
    for ipc in (1, 10, 50):
        assert paper.settings(ipc, cost.POOL).pool == cost.POOL


def test_the_published_accuracy_is_that_of_the_same_factor():
    assert paper.published(1, paper.paper_params()) == [81.3, 0.2]


@pytest.fixture
def small_reach(tmp_path, monkeypatch):
    """The study in little: a small network on digits, both methods for four iterations; runs in this process."""
    (tmp_path / "studies").mkdir()
    shutil.copy(table.ROOT / "methods.yaml", tmp_path)
    for name in ("params.yaml", "studies/params.yaml"):
        values = YAML(typ="safe", pure=True).load(table.ROOT / name)
        if name == "params.yaml":
            values["compute"] |= {"compile": False, "precision": "float32"}
        else:
            study = values["studies"]["reach"]
            study |= {"dataset": "digits", "data": {"directory": "data"}}
            study["budgets"]["reach"]["validation_per_class"] = 20
            study["network"]["options"] = {"width": 4, "depth": 1}
            for method in study["method"].values():
                method["reach"] |= {"outer_iterations": 2, "inner_iterations": 2, "real_batch": 8}
            study["budgets"]["reach"]["distillation"] |= {"interval": 2, "pool": 40, "snapshots": 2}
            study["budgets"]["reach"]["evaluation"] |= {"epochs": 1, "repeats": 2}
        YAML().dump(values, tmp_path / name)
    create("digits").fetch(tmp_path / "data")
    monkeypatch.setattr(reach, "ROOT", tmp_path)
    monkeypatch.setattr(reach, "REACH", tmp_path / "reach.json")
    monkeypatch.setattr(reach, "published", lambda ipc, params: None)
    begun = []

    def from_nothing(method, output):
        begun.append(method)
        reach.distil(method, time.time() - 100, output)

    monkeypatch.setattr(reach, "from_nothing", from_nothing)
    return begun


def test_runs_from_nothing_are_measured_and_evaluated_once(small_reach, monkeypatch):
    real, asked = reach.evaluate, []

    def evaluate_until_it_is_killed(*given, **how):
        asked.append(how["label"])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*given, **how)

    monkeypatch.setattr(reach, "evaluate", evaluate_until_it_is_killed)
    with pytest.raises(KeyboardInterrupt):
        reach.measure()
    assert not reach.REACH.exists()
    reach.measure()
    points = ["ridge at 2", "ridge at 4", "dream at 2", "dream at 4"]
    assert (small_reach, asked) == (["ridge", "dream"], [*points, "dream at 4"]), "what was there was kept"
    (found,) = read_json(reach.REACH).values()
    for run in found["runs"].values():
        assert run["total"] == 4 and list(run["points"]) == ["2", "4"]
        seconds = [point["seconds"] for point in run["points"].values()]
        assert 100 < run["before_s"] < seconds[0] < seconds[1] < 200, "counted from before the process began"
        assert all(len(point["accuracies"]) == 2 for point in run["points"].values())
    assert "| dream | 4 of 4 |" in table.reach_text(read_json(reach.REACH))
    reach.measure()
    assert small_reach == ["ridge", "dream"] * 2, "a finished run is not gone on from"


def test_a_run_from_nothing_begins_with_the_canvases_of_the_stages(small_reach):
    project = reach.opened()
    run_clustering(project, 1, 0)
    data, info = project.split("train"), project.info
    for method in project.params.methods:
        how = project.params.distillation(method, 1)
        start = starting_set(project, Setting(method, 1, 0), how, data, info)
        assert torch.equal(reach.clustered_start(project, how, 1, 0).canvases, start.canvases)
    for change, said in (
        ({"init": "random"}, "init must be kmeans, not random"),
        ({"decode": "dct"}, "must not be dct"),
    ):
        with pytest.raises(ValueError, match=said):
            reach.clustered_start(project, how.model_copy(update=change), 1, 0)


def test_a_run_of_other_parameters_is_not_gone_on_from(small_reach, tmp_path):
    project, path = reach.opened(), reach.kept("dream")
    path.parent.mkdir(parents=True)
    reach.distil("dream", time.time(), path)
    assert reach.note_of(path)["settings"] == reach.settings(project, "dream") != reach.settings(project, "ridge")
    values = YAML(typ="safe", pure=True).load(tmp_path / "studies/params.yaml")
    values["studies"]["reach"]["method"]["dream"]["reach"]["image_lr"] = 0.5
    YAML().dump(values, tmp_path / "studies/params.yaml")
    reach.measure()
    assert small_reach == ["ridge", "dream"]


def test_a_study_of_more_than_one_run_a_method_is_refused(small_reach, tmp_path, capsys):
    values = YAML(typ="safe", pure=True).load(tmp_path / "studies/params.yaml")
    values["studies"]["reach"]["seeds"] = [0, 1]
    YAML().dump(values, tmp_path / "studies/params.yaml")
    assert reach.main([]) == 1
    assert "has one run a method: list one of seeds, not [0, 1]" in capsys.readouterr().err


def test_a_process_that_fails_from_nothing_is_told_of(tmp_path):
    with pytest.raises(RuntimeError, match="the run of nosuch ended with status 1"):
        reach.from_nothing("nosuch", tmp_path / "canvases")
    assert not (tmp_path / "canvases").exists()


def test_what_was_reached_when_is_told_by_kind_of_machine():
    machine = {
        "cpu": "A CPU",
        "device": "cpu (x)",
        "threads": 2,
        "torch": "2",
        "precision": "float32",
        "compiled": True,
    }
    points = {
        "50": {"seconds": 90.0, "accuracies": [0.79, 0.80]},
        "100": {"seconds": 180.0, "accuracies": [0.80, 0.82]},
    }
    runs = {
        "one": {"factor": 2, "total": 100, "points": points},
        "other": {"factor": 2, "total": 50, "points": {"50": {"seconds": 30.0, "accuracies": [0.82, 0.84]}}},
    }
    result = {"machine": machine, "ipc": 1, "epochs": 1000, "protocol": "idc", "published": [81.3, 0.2], "runs": runs}
    told = table.reach_text({"cpu, float32": result})
    rows = [line for line in told.splitlines() if line.startswith("| o")]
    assert rows == [
        "| one | 50 of 100 | 1.5 | 79.5 ± 0.7 |", "| one | 100 of 100 | 3.0 | 81.0 ± 1.4 |",
        "| other | 50 of 50 | 0.5 | 83.0 ± 1.4 |",
    ]  # fmt: skip
    assert "80 % is reached by one in 3.0 minutes, by other in 0.5 minutes" in told
    assert "DREAM's published 81.3 % is reached by other in 0.5 minutes, not by one" in told
    assert table.reach_text({"a": result, "b": result}).count("A CPU") == 2 and "bench-reach" in table.reach_text({})
