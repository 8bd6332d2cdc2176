"""The methods study read back, on results written by hand."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest

from dreamlib._engine.files import read_json, write_atomically, write_json
from pipeline.params import find_root, read_params
from pipeline.project import Project, Setting
from pipeline.report.results import final_results, read_results
from pipeline.stages.figures import evaluations, summary
from pipeline.studies import methods as stage_methods

ROOT = find_root()
# accuracy per seed under the protocol; the plain view is 10 points lower, 5 for random
ACCURACY = {
    "random": (0.50, 0.52),
    "dc": (0.60, 0.64),
    "dc_dream": (0.66, 0.65),
    "idc": (0.40, 0.42),
    "dream": (0.7, 0.7),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The results written by hand; ``copied`` is for tests that change them."""
    params = read_params(ROOT, "methods").model_copy(update={"methods": list(ACCURACY), "seeds": [0, 1]})
    project = Project(tmp_path_factory.mktemp("methods"), params, "methods")
    for method, accuracies in ACCURACY.items():
        for seed, accuracy in enumerate(accuracies):
            setting = Setting(method, 1, seed)
            plain = accuracy - (0.05 if method == "random" else 0.10)
            seen = [("convnet", "protocol", accuracy), ("convnet", "plain", plain)]
            seen += [("mlp", "protocol", 0.3)] if seed == 0 else []
            results = {
                "accuracies": [accuracy], "accuracy": accuracy, "std": 0.0, "networks": 1, "network": "convnet",
                "epochs": 9, "protocol": "idc", "split": "test", "method": method, "ipc": 1, "seed": seed, "factor": 1,
                "label_kind": "hard", "stored_floats": 7840,
                "views": [{"network": n, "view": v, "accuracies": [a], "accuracy": a, "std": 0.0} for n, v, a in seen],
            }  # fmt: skip
            write_json(project.file("evaluation", setting, ".json"), results)
            made = {"iterations": 0 if method == "random" else 20, "training_images": 10}
            write_json(project.file("distillation", setting, ".json"), made)
            write_atomically(project.file("curves", setting, ".csv"), b"iteration,accuracy,std,networks\n")
    return project


@pytest.fixture
def copied(project, tmp_path):
    shutil.copytree(project.results, tmp_path / "results" / "methods")
    return replace(project, root=tmp_path)


def test_the_long_table_has_a_row_for_every_trained_network_and_curve_point(copied):
    project, setting = copied, Setting("dc", 1, 1)
    path = project.file("evaluation", setting, ".json")
    evaluation = read_json(path)
    evaluation["views"][0] |= {"accuracies": [0.6, 0.7], "protocol": "dsa", "epochs": 5}
    write_json(path, evaluation)
    curve = b"iteration,accuracy,std,networks\n0,0.3,0.0,1\n20,0.5,0.0,1\n"
    write_atomically(project.file("curves", setting, ".csv"), curve)
    write_json(project.file("evaluation", Setting("left_over", 1, 0), ".json"), evaluation)
    timings = {"seconds": {"matching": 3.0, "network": 4.0}, "snapshots_s": {"0": 0.5, "20": 6.5}}
    rows = read_results(project, {f"distillation-{setting.name}": timings})
    assert set(rows.method) == set(ACCURACY) and set(rows.study) == {"methods"}
    rows = rows[(rows.method == "dc") & (rows.seed == 1)]
    columns = ["split", "view", "network", "protocol", "epochs", "iteration", "accuracy", "seconds"]
    assert rows[rows.split == "test"][columns].values.tolist() == [
        ["test", "protocol", "convnet", "dsa", 5, 20, 0.6, 7.0],
        ["test", "protocol", "convnet", "dsa", 5, 20, 0.7, 7.0],
        ["test", "plain", "convnet", "idc", 9, 20, pytest.approx(0.54), 7.0],
    ]
    along = rows[rows.split == "validation"]
    assert along[["iteration", "accuracy", "seconds"]].values.tolist() == [[0, 0.3, 0.5], [20, 0.5, 6.5]]
    assert final_results(rows).accuracy.tolist() == [0.6, 0.7]


def entry(seconds):
    return {"seconds": {"matching": seconds}, "peak_memory_bytes": 2**30, "device": "cpu"}


def test_method_table_ranks_and_says_what_each_number_rests_on(project):
    record = {"distillation-dc-ipc1-seed0": entry(10.0), "distillation-dc-ipc1-seed1": entry(20.0)}
    record |= {"distillation-dc_dream-ipc1-seed0": entry(99.0), "evaluation-dc-ipc1-seed0": entry(7.0)}
    table = stage_methods.method_table(project, record)
    assert list(table.index) == ["dream", "dc_dream", "dc", "random", "idc"]
    row = table.loc["dc"]
    assert row["test accuracy (%)"] == "62.0 ± 2.8" and row["distillation (s)"] == 15.0
    assert (row["seeds"], row["networks per seed"], row["labels"], row["stored floats"]) == (2, 1, "hard", 7840)
    assert row["protocol"] == "idc, 9 epochs"
    assert pd.isna(table.loc["dream", "distillation (s)"])


def test_plug_in_gains_are_paired_by_seed(project):
    table = stage_methods.plug_in_table(project)
    assert list(table.index) == ["dc", "idc"]
    assert table.loc["dc", "gain in points (paired by seed)"] == "+3.5 ± 3.5"
    assert table.loc["dc", "seeds with a gain"] == "2 of 2"


def test_views_show_the_lead_over_random_in_the_same_view(project):
    table = stage_methods.view_table(project)
    assert table.loc["dc", "protocol: lead over random"] == 11.0
    assert table.loc["dc", "plain: lead over random"] == 6.0
    assert table.loc["random", "plain (%)"] == "46.0 ± 1.4"


def test_transfer_takes_the_first_seed_under_the_protocol_on_every_network(project):
    table = stage_methods.transfer_table(project)
    assert list(table.columns) == ["convnet", "mlp"]
    assert table.loc["dc"].tolist() == [60.0, 30.0]


def test_methods_below_random_are_named(project):
    assert stage_methods.methods_not_above(summary(evaluations(project)), "random") == ["idc"]
    assert "Not above them: `idc`" in stage_methods.verdict(project)
    assert "`dream` is best here: **70.0 ± 0.0 %**, then `dc_dream` with 65.5" in stage_methods.verdict(project)


def test_methods_below_the_chosen_images_are_named(copied):
    listed = copied.params.model_copy(update={"methods": [*copied.params.methods, "kmeans"]})
    project = replace(copied, params=listed)
    for seed in (0, 1):
        kinds = ("evaluation", "distillation")
        shown, made = (read_json(project.file(kind, Setting("random", 1, seed), ".json")) for kind in kinds)
        shown |= {"method": "kmeans", "accuracies": [0.62], "accuracy": 0.62}
        shown["views"] = [view | {"accuracies": [0.62], "accuracy": 0.62} for view in shown["views"]]
        write_json(project.file("evaluation", Setting("kmeans", 1, seed), ".json"), shown)
        write_json(project.file("distillation", Setting("kmeans", 1, seed), ".json"), made)
        curve = project.file("curves", Setting("random", 1, seed), ".csv").read_bytes()
        write_atomically(project.file("curves", Setting("kmeans", 1, seed), ".csv"), curve)
    message = stage_methods.verdict(project)
    assert "Images chosen by k-means reach 62.0 ± 0.0 % undistilled" in message
    assert "Not above those: `dc`, `idc`." in message
