"""`budget: paper` against the settings in force in the released code; docs/methods.md lists every difference."""

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dreamlib.data import info as dataset_info
from dreamlib.networks import build
from dreamlib.sampling.real_batches import SAMPLERS
from dreamlib.settings import ExpertParams
from dreamlib.synthetic.initial import INITS
from dreamlib.synthetic.learned_set import effective_image_lr
from dreamlib.training.augment import augmentation_for
from dreamlib.training.schedules import SCHEDULES
from pipeline.params import read_params

ROOT = Path(__file__).parents[1]
SETTINGS = json.loads((ROOT / "tests" / "golden" / "settings.json").read_text())
DATASETS = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100")
NOT_HERE = {"tiny_imagenet", "imagenet10", "imagenet100"}  # no data sets of this library; see docs/methods.md
TEXT = {"source", "note", "uncertain", "as"}  # keys that hold remarks


@cache
def paper(dataset, method=None, factor=None):
    """The parameters under `budget: paper`, for one data set; with ``factor``, of a method stored at that factor."""
    params = read_params(ROOT)
    methods = dict(params.method)
    if factor is not None:
        methods[method] = {**methods[method], "factor": factor}
    return params.model_copy(update={"budget": "paper", "dataset": dataset, "method": methods})


def ops(info, text, mode):
    """The augmentation's operations, in a fixed order and without mirror images where they change the class."""
    return "_".join(sorted(augmentation_for(info, text, mode).ops)) or "none"


def released_ops(info, text):
    names = [] if text == "none" else text.split("_")
    return "_".join(sorted(name for name in names if name != "flip" or info.flip)) or "none"


def drops(how):
    """The epochs at which the rate changes, and the factors by which it does."""
    rates = [SCHEDULES[how.decay](1.0, epoch, how.epochs) for epoch in range(how.epochs)]
    found = [(e, b / a) for e, (a, b) in enumerate(pairwise(rates), start=1) if a != b]
    return [epoch for epoch, _ in found], [round(ratio, 6) for _, ratio in found]


def network_of(params, info):
    name, options = params.network.name, params.network.options
    network = build(name, info, torch.Generator(), options)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    groups = {m.num_groups == m.num_channels for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    return f"{name}-{convolutions}", "instance" if groups == {True} else "other"


def ours_of_idc(method, dataset, ipc, factor):
    params, info = paper(dataset, method, factor), dataset_info(dataset)
    how, judged = params.distillation(method, ipc), params.evaluation(method, ipc)
    milestones, factors = drops(judged)
    network, norm = network_of(params, info)
    return {
        "network": network,
        "norm": norm,
        "classes": info.num_classes,
        "outer_iterations": how.outer_iterations,
        "inner_iterations": how.inner_iterations,
        "metric": how.options["distance"],
        "image_lr_base": how.image_lr,
        "image_lr": effective_image_lr(how, ipc, info),
        "image_side": info.size,
        "image_momentum": how.image_momentum,
        "real_batch": how.real_batch,
        "synthetic_cap": how.synthetic_batch,
        "decode_in_matching": how.decode,
        "init": how.init,
        "matching_augmentation": ops(info, how.augmentation, how.augmentation_mode),
        "network_batch": how.network_batch,
        "network_steps": how.network_steps,
        "network_augmentation": ops(info, how.network_augmentation, how.augmentation_mode),
        "network_cutmix_probability": how.cutmix,
        "network_lr": how.network_lr,
        "network_momentum": how.network_momentum,
        "network_weight_decay": how.network_weight_decay,
        "network_pretraining_epochs": how.pretrain_epochs,
        "evaluation.epochs": judged.epochs,
        "evaluation.batch": judged.batch,
        "evaluation.lr": judged.lr,
        "evaluation.momentum": judged.momentum,
        "evaluation.weight_decay": judged.weight_decay,
        "evaluation.milestones": milestones,
        "evaluation.lr_factor": factors[0],
        "evaluation.cutmix_probability": judged.cutmix,
        "evaluation.augmentation": ops(info, judged.augmentation, judged.augmentation_mode),
        "evaluation.decode": "single",  # whatever the rule of the set: see test_evaluate.py
    }


def released_of_idc(row):
    info = dataset_info(row["dataset"])
    inits = {"mix": "random", "random": "random", "kmean": "kmeans", "mix of k-means picks": "kmeans"}
    asked = {*TEXT, "evaluation", "method", "dataset", "ipc", "factor"}
    found = {key: value for key, value in row.items() if key not in asked}
    found |= {f"evaluation.{key}": value for key, value in row["evaluation"].items()}
    found["init"] = inits[found["init"]]
    # n_data images are as many steps of a batch as `network_steps` says: the two are one setting here.
    assert -(-found.pop("network_n_data") // found["network_batch"]) == found["network_steps"]
    for key in ("matching_augmentation", "network_augmentation", "evaluation.augmentation"):
        found[key] = released_ops(info, found[key])
    return found


IDC_ROWS = [row for row in SETTINGS["idc_dream"] if row["dataset"] not in NOT_HERE]


def test_every_row_is_compared_or_of_a_data_set_that_is_not_here():
    assert {row["dataset"] for row in SETTINGS["idc_dream"]} == {*DATASETS, *NOT_HERE}
    assert len(IDC_ROWS) == 64


@pytest.mark.parametrize("row", IDC_ROWS, ids=lambda r: f"{r['method']}-{r['dataset']}-ipc{r['ipc']}-f{r['factor']}")
def test_idc_and_dream(row):
    ours = ours_of_idc(row["method"], row["dataset"], row["ipc"], row["factor"])
    released = released_of_idc(row)
    assert released.keys() == ours.keys(), "a key is compared on one side only"
    assert {k: v for k, v in ours.items() if v != pytest.approx(released[k])} == {}


def differing(ours, released):
    """The keys whose values differ; both sides must have the same keys."""
    assert ours.keys() == released.keys(), "a key is compared on one side only"
    return {key for key, value in ours.items() if value != released[key]}


@cache
def told():
    """(methods, key) of each row of the table "Where we differ" in docs/methods.md."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").split("## Where we differ")[1]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    return [(re.findall(r"`([^`]+)`", methods), re.findall(r"`([^`]+)`", key)) for methods, key, *_ in rows]


def listed(method):
    """The keys that the table has for a method."""
    return {key for methods, keys in told() if method in methods for key in keys}


def ours_of_dc(method, dataset, ipc):
    params, info = paper(dataset), dataset_info(dataset)
    how, judged = params.distillation(method, ipc), params.evaluation(method, ipc)
    milestones, factors = drops(judged)
    evaluation = {
        "epochs_run": judged.epochs,
        "batch": judged.batch,
        "lr": judged.lr,
        "momentum": judged.momentum,
        "weight_decay": judged.weight_decay,
        "drop": (milestones, factors),
        "augmentation": (ops(info, judged.augmentation, judged.augmentation_mode), judged.augmentation_mode),
        "cutmix": judged.cutmix,
    }
    common = {
        "iterations": how.outer_iterations,
        "image_lr": how.image_lr,
        "image_momentum": how.image_momentum,
        "image_step": (how.image_optimizer, how.image_update, how.image_lr_rule),
        "real_batch": how.real_batch,
        "init": how.init,
        "augmentation": (ops(info, how.augmentation, how.augmentation_mode), how.augmentation_mode),
        "clamp": how.bounded,
        "factor": how.factor,
        "statistics": info.dc_statistics if how.statistics == "dc" and info.dc_statistics else (info.mean, info.std),
    }
    return how, common | {f"evaluation.{key}": value for key, value in evaluation.items()}


def released_of_dc(method, dataset):
    told_of, info = SETTINGS["dc_dsa_dm"], dataset_info(dataset)
    own = {**told_of["dc"], **told_of[method]} if method == "dsa" else told_of[method]
    judged = {**told_of["dc"]["evaluation"], **own["evaluation"]}
    mode = "idc"
    if method == "dc" and dataset == "mnist":
        epochs_run = told_of["dc"]["evaluation"]["mnist"]["epochs"] + 1
        judged, mode = judged | {"epochs_run": epochs_run, "augmentation": "crop_scale_rotate"}, "dc"
    elif method != "dc":
        mode = "dsa"
    augmentation = "none" if method == "dc" else "color_crop_cutout_flip_scale_rotate"
    asked = judged["augmentation"] if method == "dc" else augmentation
    statistics = told_of["statistics"].get(dataset)
    return {
        "iterations": own["iterations"],
        "image_lr": own["image_lr"]["default"] if method == "dm" else own["image_lr"],
        "image_momentum": own["image_momentum"],
        "image_step": ("sgd", "batched", "fixed"),
        "real_batch": own["real_batch"],
        "init": "noise" if method == "dc" else "random",
        "augmentation": (released_ops(info, augmentation), "idc" if method == "dc" else "dsa"),
        "clamp": False,
        "factor": 1,
        "statistics": (tuple(statistics["mean"]), tuple(statistics["std"])) if statistics else (info.mean, info.std),
        "evaluation.epochs_run": judged["epochs_run"],
        "evaluation.batch": judged["batch"],
        "evaluation.lr": judged["lr"],
        "evaluation.momentum": judged["momentum"],
        "evaluation.weight_decay": judged["weight_decay"],
        "evaluation.drop": ([(judged["epochs_run"] - 1) // 2 + 2], [0.1]),
        "evaluation.augmentation": (released_ops(info, asked), mode),
        "evaluation.cutmix": 0.0,
    }


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("ipc", [1, 10, 20, 30, 40, 50])
@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_dc_dsa_and_dm(method, ipc, dataset):
    how, ours = ours_of_dc(method, dataset, ipc)
    assert differing(ours, released_of_dc(method, dataset)) == set()
    if method == "dm":
        assert (how.objective, how.train_on, how.inner_iterations) == ("distribution", "none", 1)
        return
    outer, passes = SETTINGS["dc_dsa_dm"]["loops"][str(ipc)]
    batches = -(-ipc * dataset_info(dataset).num_classes // SETTINGS["dc_dsa_dm"]["dc"]["network_batch"])
    assert (how.inner_iterations, how.network_steps) == (outer, passes * batches)
    assert (how.options["distance"], how.options["layers"], how.train_on) == ("cosine", "conv_linear", "synthetic")
    assert (how.network_lr, how.network_momentum, how.network_weight_decay, how.cutmix) == (0.01, 0.0, 0.0, 0.0)
    assert ops(dataset_info(dataset), how.network_augmentation, "dsa") == ours["augmentation"][0]


def test_dm_at_many_images_per_class():
    released = SETTINGS["dc_dsa_dm"]["dm"]["image_lr"]
    assert paper("cifar10").distillation("dm", 100).image_lr == released["cifar10 ipc 100 and more"]


MTT_ROWS = [(dataset, int(ipc)) for dataset in ("cifar10", "cifar100") for ipc in SETTINGS["mtt"]["table"][dataset]]


@pytest.mark.parametrize(("dataset", "ipc"), MTT_ROWS)
def test_mtt(dataset, ipc):
    row = {k: v for k, v in SETTINGS["mtt"]["table"][dataset][str(ipc)].items() if k not in TEXT}
    params, info = paper(dataset), dataset_info(dataset)
    how, judged = params.distillation("mtt", ipc), params.evaluation("mtt", ipc)
    o = how.options
    ours = {
        "synthetic_steps": o["synthetic_steps"],
        "expert_epochs": o["expert_epochs"],
        "max_start_epoch": o["max_start"],
        "start_epochs": f"0 to {o['max_start'] - 1}",  # drawn so: test_objectives_trajectory.py
        "image_lr": how.image_lr,
        "rate_lr": how.learned_lr,
        "starting_rate": o["step_size"],
        "zca": how.whitening == "zca",
        "batch": o.get("batch") or None,
    }
    assert differing(ours, row) == set()
    released = SETTINGS["mtt"]
    assert (how.outer_iterations, how.image_momentum, how.image_optimizer) == (
        released["iterations"], released["image_momentum"], "sgd",
    )  # fmt: skip
    assert (how.init, how.bounded, how.augmentation_mode) == ("random", False, "dsa")
    assert ops(info, how.augmentation, "dsa") == "color_crop_cutout_flip_rotate_scale"
    e = released["evaluation"]
    assert (judged.epochs, judged.batch, judged.momentum, judged.weight_decay, judged.learned_lr, judged.cutmix) == (
        e["epochs_run"], e["batch"], e["momentum"], e["weight_decay"], True, 0.0,
    )  # fmt: skip
    assert (judged.repeats, drops(judged)) == (e["networks"], ([502], [0.1]))


def test_the_experts_of_mtt():
    released = SETTINGS["mtt"]["experts"]
    for how in (paper("cifar10").experts(), ExpertParams()):
        assert (how.count, how.epochs, how.lr, how.momentum, how.weight_decay, how.batch) == tuple(
            released[key] for key in ("number", "epochs", "lr", "momentum", "weight_decay", "batch")
        )
        assert how.mode == "dsa"


def test_dream_by_its_common_settings():
    how, common = paper("cifar10").distillation("dream", 10), SETTINGS["common"]["dream_only"]
    assert how.interval == common["interval"]
    assert how.real_batch // how.per_cluster == how.real_batch, "as many clusters as images, one image each"
    assert (how.image_optimizer, how.image_update) == ("sgd", "once_equivalent")
    assert {"init", "sampler", "image_update"} <= listed("dream")
    released = paper("cifar10").distillation("dream_released", 10)
    assert (released.init, released.sampler, released.shrink) == ("released", "released", "nearest")
    clustering = paper("cifar10").clustering("dream_released")
    assert (clustering.features, clustering.pick, clustering.max_iterations) == ("random_unnormalised", "released", 100)
    assert "released" in INITS
    assert "released" in SAMPLERS


@pytest.mark.parametrize(("dataset", "metric"), [("fashion_mnist", "l1"), ("mnist", "l1"), ("cifar10", "mse")])
def test_dream_plus(dataset, metric):
    params = paper(dataset)
    how, dream = params.distillation("dream_plus", 10), params.distillation("dream", 10)
    assert how.options == {**dream.options, "feature_weight": 1.0}
    assert (how.options["distance"], how.pretrain_epochs) == (metric, 1.0)
    assert (params.clustering("dream_plus").features, params.clustering("dream_plus").epochs) == ("trained", 1.0)
    same = {"options", "pretrain_epochs"}
    assert how.model_dump(exclude=same) == dream.model_dump(exclude=same)


def test_dd():
    released, batches = SETTINGS["dd"], {"mnist": 59, "fashion_mnist": 59, "svhn": 72, "cifar10": 49, "cifar100": 49}
    for dataset, per_pass in batches.items():
        params = paper(dataset)
        for ipc in (1, 10):
            how, judged = params.distillation("dd", ipc), params.evaluation("dd", ipc)
            assert how.outer_iterations == released["epochs"] * per_pass
            assert (how.image_optimizer, how.image_lr, how.learned_lr) == ("adam", released["lr"], released["lr"])
            assert how.image_lr_schedule == "halved"
            assert released["epochs"] // released["decay_epochs"] == 10
            assert how.options["real_batch"] == released["real_batch"]
            assert how.options["step_size"] == released["distill_lr"]
            assert how.options["passes"] == released["distill_epochs"]
            # One image of a class a step: ten steps need ten images of it.
            assert how.options["steps"] == min(ipc, released["distill_steps"])
            assert (how.bounded, judged.protocol, judged.replay) == (False, "dd", True)
    assert {"arch_default", "init"} <= listed("dd")


def test_rat_bptt():
    released = SETTINGS["rat_bptt"]
    for dataset, key in (("cifar10", "cifar10 ipc 10"), ("cifar100", "cifar100 ipc 10")):
        row, how = released[key], paper(dataset).distillation("rat_bptt", 10)
        o = how.options
        assert (o["real_batch"], o["window"], o["steps"] * o["passes"]) == (
            row["real_batch"], row["window"], row["total"],
        )  # fmt: skip
        assert (o["optimizer"], o["step_size"], o["learn_rates"]) == ("adam", row["inner_lr"], False)
        assert (how.image_optimizer, how.image_lr, how.whitening) == ("adam", row["outer_lr"], "zca")
        assert o.get("learn_labels", False) == (row["labels"] == "learned")
        assert (how.augmentation, how.augmentation_mode, o["augment_real"]) == ("flip_rotate", "dsa", True)
        assert not how.bounded
    row = released["cifar10 ipc 10"]
    passes = 50_000 // row["real_batch"]  # updates of one of its epochs
    assert paper("cifar10").distillation("rat_bptt", 10).outer_iterations == row["epochs"] * passes
    assert {"clip_ema_coefficient", "evaluation_networks"} <= listed("rat_bptt")


@pytest.mark.parametrize("dataset", DATASETS)
def test_ridge_is_frepo_but_for_what_the_table_lists(dataset):
    released, info = SETTINGS["frepo"], dataset_info(dataset)
    params = paper(dataset)
    for ipc in (1, 10):
        how = params.distillation("ridge", ipc)
        ours = {
            "factor": how.factor,
            "lr": how.image_lr,
            "lr_schedule": {"cosine_to_tenth": "cosine to 10 %"}[how.image_lr_schedule],
            "penalty": how.options["penalty"],
            "init": how.init,
            "clamp": how.bounded,
            "max_online_updates": how.inner_iterations,
            "network_augmentation": how.network_augmentation,
            "mirror_images": "flip" in augmentation_for(info, how.augmentation).ops,
            "steps": how.outer_iterations * how.inner_iterations,
            "zca": how.whitening == "zca",
        }
        mirror = {"mnist": False, "fashion_mnist": False, "svhn": False, "cifar10": True, "cifar100": ipc == 1}[dataset]
        expected = {
            "factor": released["factor"],
            "lr": released["lr"],
            "lr_schedule": released["lr_schedule"],
            "penalty": released["penalty"],
            "init": "random",
            "clamp": False,
            "max_online_updates": released["pool"]["max_online_updates"],
            "network_augmentation": "none",
            "mirror_images": mirror,
            "steps": 500_000,
            "zca": not dataset.endswith("mnist"),
        }
        assert differing(ours, expected) == set()
    assert {"image_and_label_optimizer", "loss", "labels", "pool", "network", "evaluation_script"} <= listed("ridge")


@pytest.mark.parametrize("method", ["random", "kmeans", "herding", "k_center"])
def test_real_images_are_whole_and_untouched(method):
    how = paper("cifar10").distillation(method, 10)
    assert (how.factor, how.outer_iterations, how.bounded) == (1, 0, True)


def test_herding_uses_the_features_of_a_trained_network():
    assert paper("cifar10").clustering("herding").features == "trained"


@pytest.mark.parametrize("dataset", DATASETS)
def test_all_training_images_are_used(dataset):
    assert paper(dataset).validation_per_class == 0


def test_idc_same_batch_differs_from_dream_in_start_and_sampler_alone():
    for dataset in DATASETS:
        ours, dream = (paper(dataset).distillation(m, 10).model_dump() for m in ("idc_same_batch", "dream"))
        assert {key for key in ours if ours[key] != dream[key]} == {"init", "sampler"}
        assert paper(dataset).distillation("idc", 10).shrink == "nearest", "as IDC packs its start"


def test_the_table_lists_known_methods():
    methods = set(read_params(ROOT).method)
    assert {name for names, _ in told() for name in names} <= methods | {"all"}
