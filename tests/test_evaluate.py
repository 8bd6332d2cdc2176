"""From a set to an accuracy: protocols and views where they act, one evaluation against a plain training loop."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from torch.nn import functional as F

from dreamlib import evaluation
from dreamlib._engine.compute import Compute
from dreamlib._engine.seeding import derive, generator
from dreamlib.data.whitening import whitened_info
from dreamlib.evaluation import PartialResults, apply_view, curve, evaluate, train_settings
from dreamlib.networks import build
from dreamlib.settings import PROTOCOLS, EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.schedules import SCHEDULES, constant_lr
from dreamlib.training.trainer import compiled_network, fit
from pipeline.params import find_root, read_params
from pipeline.params.check import check_names

ROOT = find_root(Path(__file__).parent)
NETWORK = ("convnet", {"width": 8})
SIX = "flip_color_crop_scale_rotate_cutout"
# name → epochs, batch, augmentation, mode, CutMix, decay, rate, {epoch: rate over the starting rate}
SIAMESE = (SIX, "dsa", 0.0, "tenth")
LATE = {0: 1, 501: 1, 502: 0.1, 1000: 0.1}
PUBLISHED = {
    "idc": (1000, 64, "flip_color_crop_scale_rotate", "idc", 0.5, "idc_steps", 0.01,
            {0: 1, 665: 1, 666: 0.2, 832: 0.2, 833: 0.04, 999: 0.04}),
    "dc": (301, 256, "none", "idc", 0.0, "tenth", 0.01, {0: 1, 151: 1, 152: 0.1, 300: 0.1}),
    "dsa": (1001, 256, *SIAMESE, 0.01, LATE),
    "dm": (1001, 256, *SIAMESE, 0.01, LATE),
    "mtt": (1001, 256, *SIAMESE, 0.03, LATE),  # the step size that was learned with the set
}  # fmt: skip


@pytest.fixture
def synthetic(toy_data):
    """Two canvases for each of three classes, with soft labels and a learned step size."""
    real = toy_data(per_class=2, seed=5)
    canvases, labels = real.images[real.labels.argsort(stable=True)], torch.arange(3).repeat_interleave(2)
    soft = 0.1 + 0.7 * F.one_hot(labels, 3)
    return SyntheticSet(canvases, labels, 3, soft_labels=soft, extras={"step_size": torch.tensor(0.03)})


@pytest.mark.parametrize("name", PUBLISHED)
def test_protocols_are_the_published_ones(name):
    p = EvaluationParams(protocol=name)
    result = (p.epochs, p.batch, p.augmentation, p.augmentation_mode, p.cutmix, p.decay)
    assert result == PUBLISHED[name][:6]
    assert (p.lr, p.momentum, p.weight_decay, p.learned_lr) == (0.01, 0.9, 5e-4, name == "mtt")
    assert (p.clean_share, p.last_layer) == (0, "trained")


def test_ridge_is_idcs_with_two_changes():
    assert set(PROTOCOLS) == {*PUBLISHED, "dd", "ridge"}
    ours, idcs = (EvaluationParams(protocol=name).model_dump() for name in ("ridge", "idc"))
    differ = {key: ours[key] for key in ours if ours[key] != idcs[key]}
    assert differ == {"protocol": "ridge", "last_layer": "ridge", "clean_share": 0.25}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_is_trained_as_its_protocol_says(name, synthetic, toy_info, toy_data, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "fit", lambda *given, **named: calls.append((given[4], named)))
    info = replace(toy_info(), flip=True)
    how = EvaluationParams(protocol=name, repeats=2)
    evaluate(synthetic, toy_data(), info, how, NETWORK, Compute(), seed=0, split="validation")
    epochs, batch, augmentation, mode, cutmix, _, rate, rates = PUBLISHED[name]
    ops = set() if augmentation == "none" else set(augmentation.split("_"))
    assert len(calls) == 2 and calls[0][1]["seed"] != calls[1][1]["seed"]
    for settings, named in calls:
        assert (named["epochs"], settings.batch, settings.momentum, settings.weight_decay) == (epochs, batch, 0.9, 5e-4)
        assert settings.lr == pytest.approx(rate)
        assert named["clean_share"] == 0
        assert (set(settings.augmentation.ops), settings.augmentation.mode, settings.cutmix) == (ops, mode, cutmix)
        given = {epoch: named["schedule"](1.0, epoch, epochs) for epoch in rates}
        assert given == pytest.approx(rates)


def test_a_network_is_trained_with_the_clean_share_asked_for(synthetic, toy_info, toy_data, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "fit", lambda *given, **named: calls.append((given[4], named)))
    how = EvaluationParams(repeats=1, clean_share=0.5)
    evaluate(synthetic, toy_data(), toy_info(), how, NETWORK, Compute(), seed=0, split="validation")
    ((settings, named),) = calls
    assert (settings.cutmix, named["clean_share"]) == (0.5, 0.5)


def test_keys_beside_a_protocol_win_and_an_unknown_one_is_named():
    assert EvaluationParams(protocol="dc", epochs=7).epochs == 7
    with pytest.raises(ValueError, match="did you mean 'dsa'"):
        EvaluationParams(protocol="dsaa")


def test_networks_may_be_names_or_names_with_options():
    listed = EvaluationParams(networks=["mlp", {"name": "convnet", "options": {"norm": "batch"}}]).networks
    assert [n.label for n in listed] == ["mlp", "convnet (norm batch)"]
    for one in ("mlp", {"name": "mlp"}, [{"name": "mlp", "options": {}}]):
        assert [n.label for n in EvaluationParams(networks=one).networks] == ["mlp"]


def test_schedules_by_hand():
    assert [SCHEDULES["idc_steps"](1.0, e, 6) for e in range(6)] == pytest.approx([1, 1, 1, 1, 0.2, 0.04])
    assert [SCHEDULES["tenth"](1.0, e, 6) for e in range(6)] == pytest.approx([1, 1, 1, 1, 1, 0.1])
    assert [constant_lr(1.0, e, 6) for e in range(6)] == [1] * 6


@pytest.mark.parametrize("epochs", [1, 2, 7, 300])
def test_tenth_is_the_released_loop(epochs):
    """DC's evaluation: train an epoch, and when its number is epochs // 2 + 1 lower the rate for those that follow."""
    rate, used = 1.0, []
    for epoch in range(epochs):
        used.append(rate)
        if epoch == epochs // 2 + 1:
            rate *= 0.1
    assert [SCHEDULES["tenth"](1.0, epoch, epochs) for epoch in range(epochs)] == pytest.approx(used)


def test_views_change_what_they_name_and_nothing_else(synthetic, toy_info):
    how = EvaluationParams()
    seen, plain = apply_view("plain", synthetic, how)
    settings = train_settings(toy_info(), plain, seen)
    assert seen is synthetic and settings.augmentation.ops == () and settings.cutmix == 0.0
    assert plain.model_dump(exclude={"augmentation", "cutmix"}) == how.model_dump(exclude={"augmentation", "cutmix"})
    hard, same = apply_view("hard_labels", synthetic, how)
    assert hard.soft_labels is None and same == how and synthetic.soft_labels is not None
    assert apply_view("protocol", synthetic, how) == (synthetic, how)


def test_the_learned_step_size_is_used_where_the_protocol_says_so(synthetic, toy_info):
    assert train_settings(toy_info(), EvaluationParams(protocol="mtt"), synthetic).lr == pytest.approx(0.03)
    assert train_settings(toy_info(), EvaluationParams(protocol="dsa"), synthetic).lr == 0.01


def seen_by_the_network(view, synthetic, info, against, monkeypatch):
    """The images and labels of every training step of one evaluation under a view."""
    batches, kernels = [], compiled_network(NETWORK, info, Compute())
    loss = kernels.training_loss
    seen, how = apply_view(view, synthetic, EvaluationParams(repeats=1, epochs=8))
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


def plain_accuracy(synthetic, against, info, how, own, soft):
    """One network trained and asked by nothing but torch: full batches, no augmentation."""
    network = build(*NETWORK[:1], info, generator(own, "network"), NETWORK[1]).double()
    new = lambda lr: torch.optim.SGD(network.parameters(), lr, momentum=how.momentum, weight_decay=how.weight_decay)  # noqa: E731
    optimizer, drops = new(how.lr), [how.epochs * 2 // 3, how.epochs * 5 // 6]
    x, y = info.normalise(synthetic.canvases.double()), synthetic.soft_labels.double() if soft else synthetic.labels
    for epoch in range(how.epochs):
        if how.decay == "idc_steps" and epoch in drops:
            optimizer.param_groups[0]["lr"] *= 0.2
        if how.decay == "tenth" and epoch == how.epochs // 2 + 2:
            optimizer = new(0.1 * how.lr)  # without the momentum so far
        optimizer.zero_grad()
        F.cross_entropy(network.train()(x), y).backward()
        optimizer.step()
    right = network.eval()(info.normalise(against.images.double())).argmax(1) == against.labels
    return right.double().mean().item()


@pytest.mark.parametrize(("soft", "decay"), [(True, "idc_steps"), (False, "idc_steps"), (False, "tenth")])
def test_an_evaluation_is_what_a_plain_loop_gives(soft, decay, synthetic, toy_info, toy_data):
    info, against = toy_info(), toy_data(per_class=40)
    how = EvaluationParams(augmentation="none", cutmix=0.0, epochs=12, batch=64, repeats=2, lr=0.05, decay=decay)
    seen, _ = apply_view("protocol" if soft else "hard_labels", synthetic, how)
    compute = Compute(torch.device("cpu"), torch.float64)
    result = evaluate(seen, against, info, how, NETWORK, compute, seed=3, split="validation")
    expected = [plain_accuracy(synthetic, against, info, how, derive(3, "evaluation", i), soft) for i in range(2)]
    assert result.accuracies == pytest.approx(expected, abs=1e-12)
    assert result.mean == pytest.approx(sum(expected) / 2) and result.epochs == 12 and result.split == "validation"
    assert 1 / 3 < result.mean < 1, "the task must be able to tell a right from a wrong loop"


@pytest.mark.parametrize("soft", [False, True])
def test_a_set_of_the_rule_bound_is_evaluated_as_single(soft, synthetic, toy_info, toy_data, monkeypatch):
    """40 canvases at factor 3 are 124 images in matching, and 360 here, unless each of the 124 has a label."""
    labels, calls = torch.arange(3).repeat_interleave(40), []
    given = torch.full((3 * 124, 3), 1 / 3) if soft else None
    bound = SyntheticSet(synthetic.canvases[labels], labels, 3, 3, "bound", soft_labels=given)
    monkeypatch.setattr(evaluation, "fit", lambda _, images, labels, *given, **named: calls.append((images, labels)))
    evaluate(bound, toy_data(), toy_info(), EvaluationParams(repeats=1), NETWORK, Compute(), seed=0, split="v")
    ((images, labels),) = calls
    assert bound.decoded_sizes == (124, 124, 124) and bound.rule == "bound"
    assert torch.equal(images, (bound if soft else replace(bound, rule="single")).decode()[0])
    assert len(images) == len(labels) == 3 * (124 if soft else 360)


@pytest.mark.parametrize("parallel_networks", [1, 2])
def test_a_last_layer_fitted_anew_is_fitted_to_the_set_alone(
    parallel_networks, synthetic, toy_info, toy_data, threads_restored
):
    """Beside the networks as they were trained, which the other setting gives."""
    info, against = toy_info(), toy_data(per_class=40)
    synthetic = replace(synthetic, soft_labels=torch.rand(6, 3, generator=torch.Generator().manual_seed(1)).softmax(1))
    how = EvaluationParams(epochs=6, batch=64, repeats=3, lr=0.05, parallel_networks=parallel_networks)
    compute = Compute(torch.device("cpu"), torch.float64)
    trained = evaluate(synthetic, against, info, how, NETWORK, compute, seed=3, split="validation")
    assert trained.as_trained == ()
    ridge = how.model_copy(update={"last_layer": "ridge", "last_layer_penalty": 0.5})
    result = evaluate(synthetic, against, info, ridge, NETWORK, compute, seed=3, split="validation")
    assert result.as_trained == trained.accuracies != result.accuracies
    targets, expected = synthetic.soft_labels.double() - 1 / 3, []
    for index in range(3):
        own = derive(3, "evaluation", index)
        network = build(*NETWORK[:1], info, generator(own, "network"), NETWORK[1]).double()
        settings = train_settings(info, how, synthetic)
        fit(
            network, synthetic.canvases, synthetic.soft_labels, info, settings,
            compiled_network(NETWORK, info, compute), epochs=6, seed=own,
        )  # fmt: skip
        with torch.no_grad():
            x, queries = (network.features(info.normalise(i.double())) for i in (synthetic.canvases, against.images))
        wide = x.T @ x + 0.5 * x.square().sum(1).mean() * torch.eye(x.shape[1], dtype=torch.float64)  # (D, D)
        right = (queries @ torch.linalg.solve(wide, x.T @ targets)).argmax(1) == against.labels
        expected.append(right.double().mean().item())
    assert result.accuracies == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("repeats", [2, 3])
def test_networks_trained_at_once_are_those_trained_in_turn(repeats, synthetic, toy_info, toy_data, threads_restored):
    """Draws, steps and order are each network's own: on one core, one after the other, every accuracy is the same."""
    info, against = toy_info(), toy_data(per_class=40)
    how, results = EvaluationParams(epochs=10, repeats=repeats, parallel_networks=3, lr=0.05), []
    compute = Compute(torch.device("cpu"), torch.float64)  # rounding, which may depend on the cores, moves no image
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(synthetic, against, info, how, NETWORK, compute, seed=1, split="validation"))
        assert torch.get_num_threads() == threads
    assert results[0] == results[1] == results[2]
    assert len(set(results[0].accuracies)) > 1, "equal networks could not show an order"


def test_damaged_partial_results_are_not_used_and_said(tmp_path, caplog):
    path = tmp_path / "kept.json"
    PartialResults(path).add(0, [0.5])
    path.write_bytes(path.read_bytes()[:-3])
    assert 0 not in PartialResults(path)
    assert f"results {path} are damaged and are not used" in caplog.text


def test_one_trace_serves_all_networks_and_batches_of_a_thread_count(
    synthetic, toy_info, toy_data, monkeypatch, traces, threads_restored
):
    """With CutMix and without it, side by side, from one trace each."""
    monkeypatch.setattr("dreamlib._engine.compiled_network.compilation_works", lambda device: True)
    info, against, results, made = toy_info(), toy_data(per_class=40), [], []
    torch.set_num_threads(2)
    for parallel_networks in (1, 2):
        how = EvaluationParams(epochs=12, repeats=2, parallel_networks=parallel_networks, lr=0.05, cutmix=0.5)
        compute, small = Compute(torch.device("cpu"), torch.float64, compile=True), {"width": 9, "depth": 1}
        seen = traces()
        results.append(evaluate(synthetic, against, info, how, ("convnet", small), compute, seed=1, split="v"))
        made.append(traces() - seen)
    assert results[0] == results[1]
    assert made == [2, 1], "training and predictions; then training on one thread instead of two"


# The units a set states, and those of the real images; and what the error says, None where they agree.
SAME = {"bounded": True, "mean": [0.4], "std": [0.25]}
WHITE = {"bounded": False, "mean": [0.0], "std": [1.0], "whitening": "zca"}
UNITS = [
    ({}, lambda info: info, None),
    ({}, lambda info: info.unbounded(), None),
    (SAME, lambda info: info, None),
    (SAME | {"bounded": False}, lambda info: info.unbounded(), None),
    (WHITE, whitened_info, None),
    (WHITE | {"zca_epsilon": 0.5}, lambda info: whitened_info(info, 0.5), None),
    ({"bounded": False}, lambda info: info.unbounded(), None),
    (SAME, lambda info: info.unbounded(), r"units .* differ: pixels in \[0, 1\] and normalised or whitened pixels"),
    (SAME | {"bounded": False}, lambda info: info, "differ: normalised or whitened pixels and pixels in"),
    (SAME | {"std": [0.2]}, lambda info: info, r"std .* differ: \[0\.2\] and \[0\.25\]; bring the real images"),
    (SAME | {"bounded": False, "mean": [0.5]}, lambda info: info.unbounded(), r"mean .* differ: \[0\.5\] and \[0\.4\]"),
    (WHITE, lambda info: info.unbounded(), "whitening .* differ: zca and none"),
    (SAME, whitened_info, "whitening .* differ: none and zca"),
    (WHITE | {"zca_epsilon": 0.5}, whitened_info, r"epsilon .* differ: 0\.5 and 0\.1; .*ZCA\.fit\(training_images"),
    (SAME, lambda info: replace(info, classes=("a", "b")), r"has 3 classes of \(1, 8, 8\) images, toy has 2 of"),
    (SAME, lambda info: replace(info, size=9), r"toy has 3 of \(1, 9, 9\): evaluate the set on the data"),
]


@pytest.mark.parametrize(("about", "real", "message"), UNITS)
def test_real_images_in_other_units_than_the_sets_are_refused_before_any_training(
    about, real, message, synthetic, toy_info, toy_data, monkeypatch
):
    monkeypatch.setattr(evaluation, "fit", lambda *given, **named: None)
    synthetic = replace(synthetic, info=about)
    given = toy_data(), real(toy_info()), EvaluationParams(repeats=1), NETWORK, Compute()
    if message is None:
        assert len(evaluate(synthetic, *given, seed=0, split="v").accuracies) == 1
    else:
        monkeypatch.setattr(evaluation, "build", lambda *given: pytest.fail("a network was built"))
        with pytest.raises(ValueError, match=message):
            evaluate(synthetic, *given, seed=0, split="v")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("canvases", lambda canvases: canvases / 0, "numbers in canvases are infinite"),
        ("canvases", lambda canvases: 4 * canvases - 2, r"pixels in \[0, 1\]; got \[-1\.8"),
        ("soft_labels", torch.Tensor.log, r"for logits, store logits\.softmax"),
    ],
)
def test_a_set_whose_values_do_not_fit_is_not_evaluated(name, change, message, synthetic, toy_info, toy_data):
    """Also one without metadata, which was changed after it was made."""
    setattr(synthetic, name, change(getattr(synthetic, name)))
    with pytest.raises(ValueError, match=message):
        evaluate(synthetic, toy_data(), toy_info(), EvaluationParams(), NETWORK, Compute(), seed=0, split="v")


def test_unequal_classes_train_with_their_own_labels(synthetic, toy_info, toy_data, monkeypatch):
    given = []
    monkeypatch.setattr(evaluation, "fit", lambda _, images, labels, *more, **named: given.append((images, labels)))
    odd = SyntheticSet(synthetic.canvases[[4, 0, 5]], torch.tensor([2, 0, 2]), 3)
    evaluate(odd, toy_data(), toy_info(), EvaluationParams(repeats=1), NETWORK, Compute(), seed=0, split="v")
    ((images, labels),) = given
    assert torch.equal(images, synthetic.canvases[[0, 4, 5]]) and labels.tolist() == [0, 2, 2]


class Interrupted(Exception):
    """In place of a kill."""


def test_an_evaluation_cut_short_keeps_the_networks_it_has(synthetic, toy_info, toy_data, tmp_path, monkeypatch):
    info, how = toy_info(), EvaluationParams(epochs=2, repeats=3)
    fixed = {"seed": 0, "split": "test", "label": "toy"}
    given = synthetic, toy_data(per_class=4, seed=7), info, how, NETWORK, Compute()
    whole = evaluate(*given, **fixed)
    real_fit, trained = evaluation.fit, []

    def fit_until_the_third(*arguments, **options):
        if len(trained) == 2:
            raise Interrupted
        trained.append(options["seed"])
        return real_fit(*arguments, **options)

    monkeypatch.setattr(evaluation, "fit", fit_until_the_third)
    with pytest.raises(Interrupted):
        evaluate(*given, **fixed, partial=PartialResults(tmp_path / "kept.json"))
    monkeypatch.setattr(evaluation, "fit", lambda *a, **o: trained.append(o["seed"]) or real_fit(*a, **o))
    resumed = evaluate(*given, **fixed, partial=PartialResults(tmp_path / "kept.json"))
    assert resumed == whole
    assert trained == [derive(0, "evaluation", index) for index in range(3)], "each network is trained once"


def test_the_view_idc_is_idcs_protocol_whatever_the_sets_own(synthetic):
    own = EvaluationParams(protocol="ridge", epochs=7, batch=5, repeats=4)
    same, how = apply_view("idc", synthetic, own)
    assert same is synthetic
    assert how == EvaluationParams(protocol="idc", repeats=4)


def test_a_curve_evaluates_the_canvases_of_each_snapshot(synthetic, toy_info, toy_data):
    info, against = toy_info(), toy_data(per_class=40)
    how = EvaluationParams(curve_networks=1, curve_epochs=30, lr=0.05)
    compute = Compute(torch.device("cpu"), torch.float32)
    snapshots = {8: synthetic.canvases, 0: torch.full_like(synthetic.canvases, 0.5)}
    points = list(curve(synthetic, snapshots, against, info, how, NETWORK, compute, seed=0))
    assert [iteration for iteration, _ in points] == [0, 8]
    again = evaluate(synthetic, against, info, how, NETWORK, compute, seed=0, split="v", repeats=1, epochs=30)
    assert points[1][1].accuracies == again.accuracies and points[1][1].epochs == 30
    assert points[0][1].mean < 0.5 < points[1][1].mean, "equal canvases cannot tell classes apart"


@pytest.fixture
def reading(tmp_path):
    """The project's parameters with changes to the evaluation of the chosen budget."""

    def read(by_dataset=None, **evaluation):
        values = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
        budget = values["budgets"]["paper"]
        budget["evaluation"].update(evaluation)
        budget["by_dataset"]["digits"] = {"evaluation": by_dataset or {}}
        values.update(dataset="digits", budget="paper", ipc=[1, 10])
        shutil.copy(ROOT / "methods.yaml", tmp_path)
        YAML().dump(values, tmp_path / "params.yaml")
        params = read_params(tmp_path)
        check_names(params)
        return params

    return read


def test_a_key_of_any_layer_wins_over_the_protocol(reading):
    how = reading(protocol="dc", by_dataset={"epochs": {1: 30, 10: 20}}).evaluation("dream", 10)
    assert (how.epochs, how.batch, how.decay, how.augmentation, how.repeats) == (20, 256, "tenth", "none", 5)
    how = reading(by_dataset={"protocol": "dsa", "batch": 32}).evaluation("dream", 1)
    assert (how.protocol, how.epochs, how.batch, how.augmentation_mode) == ("dsa", 1001, 32, "dsa")
    assert reading(networks={"name": "mlp"}).evaluation("dream", 1).networks[0].name == "mlp"
    how = reading(networks={1: "mlp", 10: {"name": "convnet", "options": {"norm": "batch"}}})
    assert [how.evaluation("dream", ipc).networks[0].label for ipc in (1, 10)] == ["mlp", "convnet (norm batch)"]
    how = reading(protocol={1: "dc", 10: "mtt"})
    assert [how.evaluation("dream", ipc).epochs for ipc in (1, 10)] == [301, 1001]
    assert [how.evaluation("dream", ipc).learned_lr for ipc in (1, 10)] == [False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "dsaa"}, "did you mean 'dsa'?"),
        ({"protocol": ["dc"]}, "protocol must be one name, got ['dc']; choose from dc, dd, dm"),
        ({"augmentation": "flip_colour"}, "did you mean 'color'?"),
        ({"networks": {"name": "mlp", "option": {}}}, "did you mean 'options'?"),
        ({"views": ["plane"]}, "views.0: Input should be 'plain', 'hard_labels'"),
        ({"views": "plain"}, "expected a list, one item per line after `- `, got 'plain'"),
        ({"decay": "tenths"}, "'idc_steps' or 'tenth', got 'tenths'"),
        ({"networks": ["mlp", "convnett"]}, "did you mean 'convnet'?"),
        ({"networks": 3}, "got 3"),  # it was the number of networks before `repeats`
        ({"repeat": 3}, "did you mean 'repeats'?"),
        ({"momentum": 1}, "momentum: Input should be less than 1, got 1"),
        ({"clean_share": 1.2}, "clean_share: Input should be less than or equal to 1, got 1.2"),
    ],
)
def test_a_mistake_in_the_evaluation_is_one_clear_line(reading, change, message):
    with pytest.raises(ValueError, match=r".") as caught:
        reading(**change)
    assert message in str(caught.value) and "\n" not in str(caught.value)
