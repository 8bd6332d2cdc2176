"""Protocols and views where they act: what params.yaml asks for is what a network is trained with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.nn import functional as F

from dreamlib import evaluate as evaluation
from dreamlib.compute import Compute
from dreamlib.evaluate import evaluate, seen_as
from dreamlib.params import PROTOCOLS, EvaluationParams, find_root, read_params
from dreamlib.project import check_names
from dreamlib.synthetic import SyntheticSet
from dreamlib.training import kernels_for

ROOT = find_root(Path(__file__).parent)
NETWORK = ("convnet", {"width": 8})
ALL = {"flip", "color", "crop", "scale", "rotate", "cutout"}
# name → epochs, batch, rate, ops, mode, CutMix, and {epoch: rate over the starting rate}
SIAMESE = (ALL, "dsa", 0.0, {0: 1, 500: 1, 501: 0.1, 999: 0.1})
PUBLISHED = {
    "idc": (1000, 64, 0.01, ALL - {"cutout"}, "idc", 0.5, {0: 1, 665: 1, 666: 0.2, 832: 0.2, 833: 0.04, 999: 0.04}),
    "dc": (300, 256, 0.01, set(), "idc", 0.0, {0: 1, 150: 1, 151: 0.1, 299: 0.1}),
    "dsa": (1000, 256, 0.01, *SIAMESE),
    "dm": (1000, 256, 0.01, *SIAMESE),
    "mtt": (1000, 256, 0.03, *SIAMESE),  # the step size that was learned with the set
}


@pytest.fixture
def synthetic(toy_data):
    """Two canvases for each of three classes, with soft labels and a learned step size."""
    real = toy_data(per_class=2, seed=5)
    canvases, labels = real.images[real.labels.argsort(stable=True)], torch.arange(3).repeat_interleave(2)
    soft = 0.1 + 0.7 * F.one_hot(labels, 3)
    return SyntheticSet(canvases, labels, 3, soft_labels=soft, extras={"step_size": torch.tensor(0.03)})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_network_is_trained_as_its_protocol_says(name, synthetic, toy_info, toy_data, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "fit", lambda *given, **named: asked.append((given[4], named)))
    info = replace(toy_info(), flip=True)
    how = EvaluationParams(protocol=name, repeats=2)
    evaluate(synthetic, toy_data(), info, how, NETWORK, Compute(), seed=0, split="validation")
    epochs, batch, rate, ops, mode, cutmix, rates = PUBLISHED[name]
    assert len(asked) == 2 and asked[0][1]["seed"] != asked[1][1]["seed"]
    for settings, named in asked:
        assert (named["epochs"], settings.batch, settings.momentum, settings.weight_decay) == (epochs, batch, 0.9, 5e-4)
        assert settings.lr == pytest.approx(rate)
        assert (set(settings.augmentation.ops), settings.augmentation.mode, settings.cutmix) == (ops, mode, cutmix)
        given = {epoch: named["schedule"](1.0, epoch, epochs) for epoch in rates}
        assert given == pytest.approx(rates)


def seen_by_the_network(view, synthetic, info, against, monkeypatch):
    """The images and labels of every training step of one evaluation under a view."""
    batches, kernels = [], kernels_for(NETWORK, info, Compute())
    loss = kernels.training_loss
    seen, how = seen_as(view, synthetic, EvaluationParams(repeats=1, epochs=8))
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "training_loss", lambda w, *batch: (batches.append(batch[:3]), loss(w, *batch))[1])
        evaluate(seen, against, info, how, NETWORK, Compute(), seed=0, split="validation")
    images, first, second = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images, first, second


@pytest.mark.parametrize(("view", "bare", "soft"), [("protocol", 0, 1), ("plain", 1, 1), ("hard_labels", 0, 0)])
def test_a_network_sees_what_the_view_says(view, bare, soft, synthetic, toy_info, toy_data, monkeypatch):
    images, first, second = seen_by_the_network(view, synthetic, toy_info(), toy_data(), monkeypatch)
    own = toy_info().normalise(synthetic.canvases)
    distance = torch.stack([(images - one).flatten(1).abs().amax(1) for one in own]).amin(0)
    assert len(images) == 8 * 6 and bool((distance < 1e-6).all()) == bool(bare)
    assert first.is_floating_point() == second.is_floating_point() == bool(soft)
    expected = synthetic.soft_labels if soft else synthetic.labels
    assert torch.equal(first.unique(dim=0), expected.unique(dim=0))
    assert torch.equal(first, second) or not bare, "without CutMix there is one label an image"


def test_views_and_protocols_leave_the_set_as_it_was(synthetic, toy_info, toy_data, monkeypatch):
    before = [t.clone() for t in (synthetic.canvases, synthetic.labels, synthetic.soft_labels)]
    seen_by_the_network("hard_labels", synthetic, toy_info(), toy_data(), monkeypatch)
    assert all(map(torch.equal, before, (synthetic.canvases, synthetic.labels, synthetic.soft_labels)))


@pytest.fixture
def reading(tmp_path):
    """The project's parameters with changes to the evaluation of the chosen budget."""

    def read(by_dataset=None, **evaluation):
        values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
        budget = values["budgets"]["paper"]
        budget["evaluation"].update(evaluation)
        budget["by_dataset"]["digits"] = {"evaluation": by_dataset or {}}
        values.update(dataset="digits", budget="paper", ipc=[1, 10])
        YAML().dump(values, tmp_path / "params.yaml")
        params = read_params(tmp_path)
        check_names(params)
        return params

    return read


def test_a_key_of_any_layer_wins_over_the_protocol(reading):
    how = reading(protocol="dc", by_dataset={"epochs": {1: 30, 10: 20}}).evaluation(10)
    assert (how.epochs, how.batch, how.decay, how.augmentation, how.repeats) == (20, 256, "tenth", "none", 5)
    how = reading(by_dataset={"protocol": "dsa", "batch": 32}).evaluation(1)
    assert (how.protocol, how.epochs, how.batch, how.augmentation_mode) == ("dsa", 1000, 32, "dsa")
    how = reading(protocol={1: "dc", 10: "mtt"})
    assert [how.evaluation(ipc).epochs for ipc in (1, 10)] == [300, 1000]
    assert [how.evaluation(ipc).learned_lr for ipc in (1, 10)] == [False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "dsaa"}, "did you mean 'dsa'?"),
        ({"views": ["plane"]}, "'plain' or 'hard_labels', got 'plane'"),
        ({"views": "plain"}, "valid list, got 'plain'"),
        ({"decay": "tenths"}, "'fifths', 'tenth' or 'none', got 'tenths'"),
        ({"networks": ["mlp", "convnett"]}, "did you mean 'convnet'?"),
        ({"networks": 3}, "got 3"),  # it was the number of networks before `repeats`
        ({"repeat": 3}, "did you mean 'repeats'?"),
    ],
)
def test_a_mistake_in_the_evaluation_is_one_clear_line(reading, change, said):
    with pytest.raises(ValueError, match=r".") as caught:
        reading(**change)
    assert said in str(caught.value) and "\n" not in str(caught.value)
