"""A judgement: scores by hand, what is refused before any work, and one of digits from the command to the report."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from dreamlib import evaluation
from dreamlib.data import create, load_split
from dreamlib.settings import PROTOCOL_INDEPENDENT
from dreamlib.synthetic.initial import fill, random_rows
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.params import find_root, read_params
from pipeline.report import judged
from pipeline.report.judged import BEST_SET, KMEANS, RANDOM, THIS, normalised
from pipeline.studies import judge
from pipeline.studies.judge import Judgement
from pipeline.studies.judged_file import judging_project, own_protocol

ROOT = find_root(Path(__file__).parent)


def test_scores_are_normalised_by_their_definition():
    """A lead of 0 gives (1 − 1/e) / (e − 1/e); the extremes give 0 and 1."""
    assert normalised(0.0) == pytest.approx((1 - 1 / math.e) / (math.e - 1 / math.e))
    assert (normalised(-1.0), normalised(1.0)) == (0, pytest.approx(1))


def rows_of(*accuracies):
    """A row for each (method, view, accuracy), all of the matched network."""
    rows = pd.DataFrame(accuracies, columns=["method", "view", "accuracy"])
    return rows.assign(matched=True, network="convnet", seed=0, protocol="dc", epochs=3)


def test_scores_read_the_views_they_are_defined_by():
    rows = rows_of(
        (THIS, "protocol", 0.5), (THIS, "protocol", 0.7), (THIS, "plain", 0.4), (THIS, "hard_labels", 0.55),
        (RANDOM, "protocol", 0.3), (RANDOM, "plain", 0.3), (RANDOM, "hard_labels", 0.1),
    )  # fmt: skip
    found = judged.scores(rows, "cifar10")
    assert found["ior"] == pytest.approx(0.3) and found["hlr"] == pytest.approx(0.848 - 0.55)
    assert found["lrs"] == pytest.approx((math.exp((0.3 - 0.298) / 2) - 1 / math.e) / (math.e - 1 / math.e))
    assert found["ars"] == pytest.approx((math.exp(0.2) - 1 / math.e) / (math.e - 1 / math.e))
    other = judged.scores(rows, "digits")
    assert math.isnan(other["hlr"]) and math.isnan(other["lrs"]) and other["ars"] == found["ars"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A copy of the project on digits, uncompiled and on one thread, with a set of two random images a class."""
    root = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "dreamlib", "pipeline"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "methods.yaml"):
        shutil.copy(ROOT / name, root / name)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["compute"].update(compile=False, precision="float32", threads=1, device="cpu")
    yaml.dump(params, root / "params.yaml")
    create("digits").fetch(root / "data")
    return root


@pytest.fixture(scope="module")
def real(root):
    """Two random training images of each digit."""
    train = load_split("digits", "train", root / "data", 0, 0)
    info = {"dataset": "digits", "classes": list("0123456789"), "mean": [0.3053], "std": [0.3755]}
    return replace(fill(train, random_rows(train, 2, 7), 2, 1, "single"), info=info)


@pytest.fixture
def saved(root, real, monkeypatch):
    """Save that set, with changes, and return the name of its file; the project is the working directory.

    dc.pt beside it holds the set's images, normalised, as two experiments of DC's layout.
    """
    monkeypatch.chdir(root)
    images, labels = (real.canvases - 0.3053) / 0.3755, real.labels
    experiments = [[images, labels], [images.flip(0), labels.flip(0)]]
    torch.save({"data": experiments, "accs_all_exps": {"ConvNet": [0.5, 0.7, 0.6, 0.6]}}, "dc.pt")

    def save(name="mine", **changes):
        replace(real, **changes).save(root / f"{name}.safetensors")
        return f"{name}.safetensors"

    return save


MISTAKES = [
    ({}, "missing.safetensors --data digits", "no file or folder .*missing.safetensors; check the path"),
    ({}, "mine.safetensors --data digitz", "did you mean 'digits'"),
    ({}, "mine.safetensors --data digits --protocol dcc", "unknown evaluation protocol 'dcc'"),
    ({}, "mine.safetensors --data digits --protocol dd", "stores no such training; choose another"),
    ({}, "mine.safetensors --data digits --ipc 3", "stores 2 images per class, not 3; set IPC=2"),
    ({}, "mine.safetensors --data digits --networks 0", "give at least 1 network"),
    (
        {},
        "mine.safetensors --data digits --stored normalised=none",
        "specifies how it is stored; leave out STORED=",
    ),
    ({}, "mine.safetensors --data mnist", "is a set of digits, not of mnist; set DATA=digits"),
    ({"info": {}}, "mine.safetensors --data mnist", r"\(1, 8, 8\), and mnist's are \(1, 28, 28\)"),
    ({"info": {}}, "mine.safetensors --data cifar100", "has 10 classes, and cifar100 has 100"),
    ({"info": {"classes": list("1023456789")}}, "mine.safetensors --data digits", "in that order"),
    ({}, "dc.pt --data digits --protocol dc", "how its images are normalised.*as key=value with STORED="),
    ({}, "dc.pt --data digits --stored normalized=none", "did you mean 'normalised'"),
    ({}, "dc.pt --data digits --stored zca_epsilon=small", "zca_epsilon of a stored set cannot be 'small'"),
    ({}, "dc.pt --data digits --stored normalised=literature", "several methods share the layout 'dc'"),
]


@pytest.mark.parametrize(("changes", "arguments", "message"), MISTAKES)
def test_what_cannot_be_judged_is_refused_in_one_line_before_any_work(saved, changes, arguments, message, capsys):
    saved(**changes)
    assert judge.main(arguments.split()) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and re.search(message, said), said
    assert not Path("results").exists() and not Path("reports").exists()


def test_make_judge_without_a_set_prints_how_to_use_it():
    for given in ([], ["SET=mine.pt"]):
        done = subprocess.run(["make", "-s", "judge", *given], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0 and done.stdout == ""
        assert "usage: make judge SET=file DATA=cifar10" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_judgement_of_digits_from_the_command_to_the_report(saved, root, capsys):
    """Two networks by DC's protocol; the set is random images, so that it must stand among the random ones."""
    arguments = [saved("two images"), "--data", "digits", "--protocol", "dc", "--networks", "2", "--epochs", "12"]
    assert judge.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("A trial: not the protocols' epochs (301 under its own, 1000 under IDC's) and 2 networks")
    name = "two_images-dc-12-epochs"
    rows = pd.read_csv(root / "results" / "judged" / name / "accuracies.csv")
    summary = json.loads((root / "results" / "judged" / name / "judgement.json").read_text())
    assert set(rows.groupby(["method", "view", "network", "seed"]).size()) == {2} and set(rows.epochs) == {12}
    both, others = {"protocol", "idc", "plain", "hard_labels"}, {"protocol", "idc"}
    assert {m: set(part.view) for m, part in rows.groupby("method")} == {THIS: both, RANDOM: both, KMEANS: others}
    assert set(rows.network) == {"convnet", "mlp"}, "digits are too small for LeNet"
    matched = rows[rows.matched & (rows.method == THIS)]
    by_view = {view: part.accuracy.tolist() for view, part in matched.groupby("view")}
    assert by_view["protocol"] == by_view["plain"] == by_view["hard_labels"] != by_view["idc"]
    assert min(rows.accuracy[rows.matched]) > 0.4, "chance is 0.1"
    assert summary["sets"][THIS] == summary["sets"][RANDOM] == {
        "labels": "hard", "factor": 1, "training_images": 20, "stored_floats": 1280, "bytes": 5120,
    }  # fmt: skip
    assert summary["scores"]["lrs"] is None and 0 < summary["scores"]["ars"] < 1
    report = nbformat.read(root / "reports" / "judged" / f"{name}.ipynb", 4)
    shown = json.dumps(report.cells)
    assert "kmeans" in shown and "image/png" in shown and "hash of its content" in shown
    assert BEST_SET not in summary["sets"]


def test_networks_trained_before_are_not_trained_again(saved, monkeypatch):
    """The second judgement adds a network to the first one's; its own view and IDC's are one under IDC's protocol."""
    saved("again")
    first, _ = Judgement.open("again.safetensors", "digits", "idc", networks=1, epochs=2).run()
    trained = []
    real_fit = evaluation.fit
    monkeypatch.setattr(evaluation, "fit", lambda *given, **named: (trained.append(1), real_fit(*given, **named)))
    rows, summary = Judgement.open("again.safetensors", "digits", "idc", networks=2, epochs=2).run()
    once = first[["method", "view", "network", "accuracy"]].merge(rows, "left")
    assert len(once) == len(first) and once.seed.notna().all()
    # Of either kind of images the ConvNet's two views and the MLP, of k-means medoids one view: each a second time.
    assert not summary["own_is_not_idc"] and len(trained) == 2 * 3 + 1


def test_every_experiment_of_a_file_is_judged_beside_real_images_in_its_units(saved, root):
    saved()
    judgement = Judgement.open("dc.pt", "digits", "dsa", stored="normalised=literature", networks=1, epochs=1)
    assert [(method, seed) for method, seed, _ in judgement.compared] == [
        (THIS, 0), (THIS, 1), (RANDOM, 0), (RANDOM, 1), (KMEANS, 0),
    ]  # fmt: skip
    train = load_split("digits", "train", root / "data", 0, 0)
    normalised = judgement.project.info.normalise(train.images).flatten(1)
    for method, seed, real_images in judgement.compared[2:]:
        near = (real_images.canvases.flatten(1).unsqueeze(1) - normalised).abs().amax(2).min(1)
        assert near.values.max() < 1e-6 and torch.equal(train.labels[near.indices], real_images.labels), (method, seed)
        assert len(set(near.indices.tolist())) == 20 and real_images.info["bounded"] is False
    assert not torch.equal(judgement.compared[2][2].canvases, judgement.compared[3][2].canvases)
    rows, summary = judgement.run()
    assert judgement.name == "dc-dsa-1-epochs" and summary["experiments"] == 2
    assert rows[rows.method == THIS].groupby("view").seed.nunique().eq(2).all()
    assert list(judged.experiment_table(rows, summary).index) == [0, 1]
    makers = judged.makers_note(summary)
    assert makers == "The file itself states a test accuracy of 60.0 ± 8.2 % (ConvNet, 4 networks)."
    assert {m: t.shape[0] for m, t in judgement.baseline_pictures.items()} == {THIS: 10, RANDOM: 10, KMEANS: 10}


def test_one_network_has_no_spread():
    rows = pd.DataFrame({"method": [THIS, RANDOM], "view": "idc", "matched": True, "accuracy": [0.75, 0.5]})
    epochs = {"protocol": 9, "idc": 9}
    summary = {
        "epochs": epochs, "protocol_epochs": epochs, "protocol": "idc", "own_is_not_idc": False, "networks": 1,
        "experiments": 1, "name": "s", "dataset": "digits", "sets": {THIS: {"stored_floats": 640, "labels": "hard"}},
        "makers": {"ConvNet": {"mean": 0.7, "std": 0.0, "networks": 1}},
    }  # fmt: skip
    said = judged.answer(rows, summary)
    assert "reaches 75.0 % (n = 1) test accuracy on digits under IDC's protocol (9 epochs)**, compared with" in said
    assert "; accuracies of one network, without a spread, after the last epoch." in said and "±" not in said
    assert "70.0 % (n = 1) (ConvNet, 1 network)" in judged.makers_note(summary)


def test_classes_of_unequal_size_are_pictured_in_their_own_rows(saved, real):
    few = saved("uneven", canvases=real.canvases[1:], labels=real.labels[1:])
    pictures = Judgement.open(few, "digits").pictures
    assert torch.equal(pictures[0], real.canvases[1]) and pictures[1].unique().tolist() == [1.0]
    assert torch.equal(pictures[2:], real.canvases[2:])


@pytest.mark.parametrize(
    ("dataset", "protocol", "factor", "expected"),
    [
        ("mnist", "dc", 1, {"epochs": 1001, "augmentation": "crop_scale_rotate", "augmentation_mode": "dc"}),
        ("cifar10", "dc", 1, {"epochs": 301, "augmentation": "none"}),
        ("mnist", "idc", 2, {"cutmix": 0.0}),
        ("mnist", "idc", 1, {"cutmix": 0.5}),
        ("cifar10", "mtt", 1, {"epochs": 1001, "learned_lr": True}),
        ("cifar10", "ridge", 1, {"last_layer": "ridge"}),
    ],
)
def test_a_protocol_is_that_of_the_released_code_on_the_data_set(dataset, protocol, factor, expected):
    project = judging_project(ROOT, dataset)
    synthetic = SyntheticSet(torch.zeros(10, 1, 28, 28), torch.arange(10), 10, factor)
    how = own_protocol(project, Path("mine.safetensors"), synthetic, protocol)
    assert {key: getattr(how, key) for key in expected} == expected and how.protocol == protocol
    assert project.params.validation_per_class == 0 and how.parallel_networks == 2


def test_our_best_sets_have_the_protocol_of_their_study(monkeypatch):
    monkeypatch.chdir(ROOT)
    best = Judgement.open("fashion_mnist", "fashion_mnist", ipc=10)
    recorded = read_params(ROOT, "best_ipc10").evaluation("ridge", 10)
    assert best.protocol.model_dump(exclude=set(PROTOCOL_INDEPENDENT)) == recorded.model_dump(
        exclude=set(PROTOCOL_INDEPENDENT)
    )
    assert best.name == "fashion_mnist-ipc10-ridge" and best.file == "results/best/fashion_mnist-ipc10.safetensors"
