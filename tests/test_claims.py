"""Verdicts, crossings and the bootstrap, by hand; batches' gradients against autograd; costs counted by hand."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import derive, generator
from dreamlib.networks import build
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.features import accuracy, fit_last_layer, predict
from dreamlib.training.schedules import SCHEDULES, constant_lr
from dreamlib.training.trainer import Trainer, TrainSettings, fit
from pipeline.report.statistics import (
    HOLDS,
    NOT,
    PARTLY,
    bootstrap,
    break_even,
    combined_verdict,
    first_reaching,
    judge,
    judge_share,
    share_of_iterations,
)
from pipeline.studies.batch_gradients import KINDS, BatchStudy, class_gradient, class_pools, gradient_measures
from pipeline.studies.training_cost import energy_joules, operations_per_image, stored_bytes, training_curve


def test_a_curve_reaches_a_value_between_its_points_at_its_start_or_never():
    curve = {0: 0.2, 10: 0.6, 20: 0.5, 40: 0.9}
    assert first_reaching(curve, 0.4) == 5.0
    assert first_reaching(curve, 0.7) == pytest.approx(30)  # the dip at 20 is no crossing
    assert first_reaching(curve, 0.1) == 0.0
    assert first_reaching(curve, 0.95) == math.inf


def test_the_bootstrap_lists_every_draw():
    seen = []
    bootstrap(lambda drawn: seen.append(drawn) or 0.0, 2)
    assert sorted(seen) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # 256 draws valued 0 to 255: 2.5 % of them are 6.4, so that the 7th and the 250th bound 95 %
    assert bootstrap(lambda drawn: 64 * drawn[0] + 16 * drawn[1] + 4 * drawn[2] + drawn[3], 4) == (6.0, 249.0)
    assert bootstrap(lambda drawn: 7.0 + drawn[0], 1) == (7.0, 7.0)
    with pytest.raises(ValueError, match="give 1 to 6"):
        bootstrap(lambda drawn: 0.0, 7)


def test_share_of_iterations_by_hand():
    slow = pd.DataFrame([[0.4, 0.5, 0.60], [0.4, 0.5, 0.62], [0.4, 0.5, 0.64]], columns=[0, 40, 80])
    fast = pd.DataFrame([[0.5, 0.70, 0.8], [0.5, 0.70, 0.8], [0.5, 0.74, 0.8]], columns=[0, 40, 80])
    share, low, high = share_of_iterations(slow, fast)
    # means: 0.62 to reach, from 0.5 to 0.71333 over 40 of 80 iterations
    assert share == pytest.approx(0.12 / (0.64 / 3) / 2)
    # thrice seed 0: 0.10 of 0.20; thrice seed 2: 0.14 of 0.24; thrice seed 1: 0.12 of 0.20, the worst
    assert low == pytest.approx(0.10 / 0.20 / 2)
    assert high == pytest.approx(0.12 / 0.20 / 2) and judge_share(share, low, high) == HOLDS
    assert share_of_iterations(fast, slow)[0] == math.inf
    assert share_of_iterations(slow, slow + 0.3)[0] == 0.0
    with pytest.raises(ValueError, match="3 and 2 seeds"):
        share_of_iterations(slow, fast.iloc[:2])


@pytest.mark.parametrize(
    ("parts", "whole"), [([HOLDS, HOLDS], HOLDS), ([PARTLY, NOT], PARTLY), ([HOLDS, NOT], PARTLY), ([NOT, NOT], NOT)]
)
def test_parts_of_a_claim_together(parts, whole):
    assert combined_verdict(parts) == whole


def test_a_margin_must_be_exceeded_by_every_seed_or_by_the_mean_beyond_its_error():
    gains = [0.02, 0.03, 0.04]  # mean 0.03, standard error 0.01 / √3 = 0.0058
    assert [judge(gains, margin) for margin in (0.0, 0.015, 0.024, 0.025)] == [HOLDS, HOLDS, PARTLY, NOT]
    assert [judge_share(0.3, 0.1, 0.6, margin) for margin in (0.0, 0.5, 0.8)] == [HOLDS, PARTLY, NOT]


def test_what_saves_nothing_never_pays():
    assert break_even(100.0, 2.0, 2.0) == break_even(100.0, 3.0, 2.0) == math.inf
    assert break_even(100.0, 2.0, 3.0) == 100.0


def test_a_class_gradient_in_chunks_is_autograds_of_the_whole(toy_data, toy_info, tiny, float64):
    data, info = toy_data(dtype=torch.float64), toy_info()
    network = tiny(double=True)
    images = data.images[data.of_class(2)]
    loss = nn.functional.cross_entropy(network(info.normalise(images)), torch.full((12,), 2))
    expected = torch.autograd.grad(loss, [p for p in network.parameters() if p.ndim == 4])
    result = class_gradient(network, images, 2, info, CompiledNetwork(network, float64), chunk=5)
    assert torch.allclose(result.double(), torch.cat([g.flatten() for g in expected]), rtol=1e-5, atol=1e-7)


def test_one_batch_has_no_spread_and_the_class_itself_no_distance():
    full = torch.tensor([1.0, 2.0, 2.0])
    result = gradient_measures(full, full.unsqueeze(0))
    assert result["distance"] == 0 and result["norm"] == result["full_norm"] == 3
    assert math.isnan(result["variance"]) and math.isnan(result["norm_std"])


def test_batches_of_every_kind_are_of_the_class_and_of_one_size(toy_data, toy_info, tiny):
    info, network = toy_info(), tiny()
    data, rows = class_pools(toy_data(per_class=30), 20, seed=0)
    assert data.labels.bincount().tolist() == [20, 20, 20] and len(set(rows.tolist())) == 60
    study = BatchStudy(data, info, CompiledNetwork(network, Compute()), size=4, draws=2, seed=0)
    features, logits = study.features(network)
    for kind in KINDS:
        result = study.batches(kind, 1, features, logits, 0)
        assert len(result) == (2 if kind in ("random", "representative") else 1)
        assert all(len(set(b.tolist())) == 4 and set(b.tolist()) <= set(range(20)) for b in result)
    own = features[data.of_class(1)]
    nearest = (own - own.mean(0)).square().sum(1).topk(4, largest=False).indices
    assert set(study.batches("center", 1, features, logits, 0)[0].tolist()) == set(nearest.tolist())
    scores = logits[data.of_class(1)].log_softmax(1)
    margin = scores[:, 1] - torch.maximum(scores[:, 0], scores[:, 2])
    result = study.batches("boundary", 1, features, logits, 0)[0]
    assert set(result.tolist()) == set(margin.topk(4, largest=False).indices.tolist())
    table = study.measure(network, 0)
    assert len(table) == 3 * len(KINDS) and table["variance"].isna().sum() == 3 * 2
    again = study.measure(network, 0)
    pd.testing.assert_frame_equal(table, again)


def test_a_batch_of_the_whole_class_is_the_class(toy_data, toy_info, tiny):
    network, data = tiny(), toy_data(per_class=6)
    table = BatchStudy(data, toy_info(), CompiledNetwork(network, Compute()), size=6, draws=2, seed=0).measure(
        network, 0
    )
    assert (table.distance < 1e-6).all() and (table.nearest_distance < 1e-5).all() and (table.clusters_hit == 1).all()


def test_operations_of_a_two_layer_network_by_hand(toy_info):
    # 64 pixels → 5 → 5 → 3: forward 2·(320 + 25 + 15); backward as much for the weights, and for inputs but the pixels.
    assert operations_per_image(("mlp", {"width": 5}), toy_info()) == 2 * 360 + 2 * 360 + 2 * (25 + 15)


def test_operations_of_the_convnet_are_those_of_its_layers_by_hand(toy_info):
    # 3 × 3 convolutions 1 → 4 → 4 at 8 and 4 pixels, and 16 features → 3: each for the values, and as much for the
    # gradients of the weights and, but for the pixels, of the inputs.
    first, others = 2 * 9 * 1 * 4 * 8**2, 2 * 9 * 4 * 4 * 4**2 + 2 * 16 * 3
    assert operations_per_image(("convnet", {"width": 4, "depth": 2}), toy_info()) == 2 * first + 3 * others


def test_stored_bytes_are_four_a_float_and_one_a_published_pixel(toy_data):
    made = SyntheticSet(torch.zeros(3, 1, 8, 8), torch.arange(3), 3, soft_labels=torch.eye(3))
    assert stored_bytes(made) == 4 * (3 * 64 + 9)
    assert stored_bytes(toy_data(per_class=12)) == 36 * 64


def test_joules_are_read_where_there_is_a_meter(tmp_path):
    assert energy_joules(tmp_path / "none") is None
    (tmp_path / "energy_uj").write_text("2500000\n")
    assert energy_joules(tmp_path / "energy_uj") == 2.5


@pytest.mark.parametrize("clean_share", [0.0, 0.5])
def test_watched_training_is_plain_training_asked_on_the_way(toy_data, toy_info, monkeypatch, clean_share):
    data, info, compute = toy_data(per_class=12), toy_info(), Compute()
    network, settings = ("convnet", {"width": 8}), TrainSettings(batch=10, cutmix=0.5)
    losses, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *given: losses.append(step(*given)) or losses[-1])
    watched = training_curve(
        data.images, data.labels, data, info, network, settings, compute, points=(2, 4, 8), seed=0,
        schedule=SCHEDULES["idc_steps"], clean_share=clean_share,
    )  # fmt: skip
    results = list(watched)
    seen = [losses.pop(0) for _ in range(8)]
    assert [(f["step"], f["seen"]) for f in results] == [(2, 20), (4, 36), (8, 72)]  # 36 images: 10, 10, 10, 6
    assert 0 < results[0]["seconds"] < results[1]["seconds"] < results[2]["seconds"]
    own = derive(0, "cost")
    plain = compute.place(build("convnet", info, generator(own, "network"), network[1]))
    kernels = CompiledNetwork(plain, compute)
    fit(plain, data.images, data.labels, info, settings, kernels, epochs=2, seed=own, clean_share=clean_share)
    assert seen == losses, "the same steps, to the bit"
    assert accuracy(predict(plain, data.images, info, kernels), data.labels) == results[2]["accuracy"]


def test_watched_training_asks_a_copy_whose_last_layer_is_fitted(toy_data, toy_info):
    data, info, compute = toy_data(per_class=12), toy_info(), Compute()
    against, network = toy_data(per_class=60, seed=3), ("convnet", {"width": 8})
    accuracies = []
    for penalty in (0.0, 0.1, 10.0):
        watched = training_curve(
            data.images, data.labels, against, info, network, TrainSettings(batch=10), compute, points=(2, 4, 8),
            seed=0, last_layer_penalty=penalty,
        )  # fmt: skip
        accuracies.append([result["accuracy"] for result in watched])
    own = derive(0, "cost")
    for penalty, result in zip((0.1, 10.0), accuracies[1:], strict=True):
        plain = compute.place(build("convnet", info, generator(own, "network"), network[1]))
        kernels = CompiledNetwork(plain, compute)
        fit(
            plain, data.images, data.labels, info, TrainSettings(batch=10), kernels, epochs=2, seed=own,
            schedule=constant_lr,
        )  # fmt: skip
        fit_last_layer(plain, data.images, data.labels, info, kernels, penalty)
        assert accuracy(predict(plain, against.images, info, kernels), against.labels) == result[2]
    assert len({result[2] for result in accuracies}) == 3, "equal accuracies could not show which network was asked"
