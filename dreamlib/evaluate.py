"""How good is a set: train fresh networks on it and count; the only module that reads the test split."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamlib import data as datasets
from dreamlib._engine import ranks
from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.compute import Compute
from dreamlib._engine.files import read_json, write_json
from dreamlib._engine.progress import progress
from dreamlib._engine.seeding import derive, generator
from dreamlib._engine.threads import shares, side_by_side
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching.unrolled import UNROLLED, replay
from dreamlib.networks import build
from dreamlib.settings import EvaluationParams
from dreamlib.synthetic.synthetic_set import SyntheticSet
from dreamlib.training.trainer import (
    SCHEDULES,
    TrainSettings,
    accuracy,
    augmentation_for,
    compiled_network,
    fit,
    fit_last_layer,
    predict,
)
from pipeline.params import DataParams


class PartialResults:
    """What an evaluation has found so far, by network; in a file, so that one cut short keeps it, where there is one.

    >>> kept = PartialResults()
    >>> kept.add(0, [0.8])
    >>> 0 in kept, 1 in kept, kept[0]
    (True, False, [0.8])
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._found: dict[str, list[float]] = read_json(path) if path and path.is_file() else {}

    def __contains__(self, index: int) -> bool:
        return str(index) in self._found

    def __getitem__(self, index: int) -> list[float]:
        return self._found[str(index)]

    def add(self, index: int, accuracies: list[float]) -> None:
        """Keep a network's accuracies: as trained, then with its last layer fitted anew where that was done."""
        self._found[str(index)] = accuracies
        if self.path:
            write_json(self.path, self._found)

    def delete(self) -> None:
        """Remove the file: the results are part of a larger one."""
        if self.path:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Evaluation:
    """Last-epoch accuracies (fractions), one per network trained on the set, with what they were counted on.

    ``as_trained`` has those of the same networks before their last layer was fitted anew, where the protocol does so.
    """

    accuracies: tuple[float, ...]
    split: str
    epochs: int
    as_trained: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over networks; 0 for one network."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def test_split(name: str, data: DataParams, root: Path) -> LabeledImages:
    """The test images; called by evaluation and by nothing else."""
    return datasets.load_split(name, "test", root / data.directory, 0, 0, data.options)


def train_settings(info: DatasetInfo, how: EvaluationParams, synthetic: SyntheticSet) -> TrainSettings:
    """The protocol as training settings; with ``learned_lr`` at the step size that was learned with the set (MTT)."""
    augmentation = augmentation_for(info, how.augmentation, how.augmentation_mode)
    lr = float(synthetic.extras["step_size"]) if how.learned_lr and "step_size" in synthetic.extras else how.lr
    return TrainSettings(
        how.batch, lr, how.momentum, how.weight_decay, augmentation, how.cutmix, how.label_smoothing
    )  # fmt: skip


def seen_as(view: str, synthetic: SyntheticSet, how: EvaluationParams) -> tuple[SyntheticSet, EvaluationParams]:
    """The set and the protocol of one view, so that what the evaluator adds is not taken for the set's own.

    'protocol' is both as they are; 'plain' trains without augmentation and CutMix (a replay keeps the set's own);
    'hard_labels' on class numbers, in place of stored soft labels and without label smoothing; 'idc' by IDC's protocol
    untouched, whatever the set's own is. Compare a view with the same view of real images at random (cf. label- and
    augmentation-robust scores).
    """
    if view == "plain":
        return synthetic, how.model_copy(update={"augmentation": "none", "cutmix": 0.0})
    if view == "hard_labels":
        return replace(synthetic, soft_labels=None), how.model_copy(update={"label_smoothing": 0.0})
    if view == "idc":
        return synthetic, EvaluationParams(protocol="idc", repeats=how.repeats, parallel_networks=how.parallel_networks)
    return synthetic, how


def evaluate(
    synthetic: SyntheticSet,
    against: LabeledImages,
    info: DatasetInfo,
    how: EvaluationParams,
    network: tuple[str, dict[str, Any]],
    compute: Compute,
    *,
    seed: int,
    split: str,
    repeats: int | None = None,
    epochs: int | None = None,
    label: str = "evaluate",
    kept: PartialResults | None = None,
) -> Evaluation:
    """Train ``repeats`` fresh networks on the decoded set; accuracy on ``against`` after the last epoch.

    Network i starts from the seed derived from (seed, i) alone, so every set meets the same initial networks. Nothing
    is chosen on ``against``: it is looked at once, after training. Soft labels are used where the set stores them. A
    set of the rule 'bound' is decoded as 'single', by its factor alone, as in IDC's code, unless it stores labels for
    its images. On a CPU ``how.parallel_networks`` networks train side by side (``dreamlib._engine.threads``). Workers
    (``dreamlib._engine.ranks``) take turns at the networks; every one of them gets all accuracies. Networks whose
    results are ``kept`` are not trained again.
    """
    repeats, epochs = repeats or how.repeats, epochs or how.epochs
    placed = synthetic.to(compute.device)
    if placed.rule == "bound" and placed.soft_labels is None:
        placed = replace(placed, rule="single")
    images, hard = placed.decode()
    labels = hard if placed.soft_labels is None else placed.soft_labels
    against, settings = against.to(compute.device), train_settings(info, how, synthetic)
    name, options = network
    kernels, kept = compiled_network(network, info, compute), kept or PartialResults()
    mine = ranks.my_share(range(repeats))

    def train(one: tuple[nn.Module, int, CompiledNetwork], stepped: Callable[[], object]) -> None:
        model, own, its_kernels = one
        if how.replay:
            replay(model, placed, info, compute, generator(own, "replay"))
            for _ in range(epochs):
                stepped()
            return
        fit(
            model, images, labels, info, settings, its_kernels,
            epochs=epochs, seed=own, schedule=SCHEDULES[how.decay], clean_share=how.clean_share, on_epoch=stepped,
        )  # fmt: skip

    threads = torch.get_num_threads() if compute.device.type == "cpu" else 1
    if how.replay:
        epochs = placed.info.get(UNROLLED, {}).get("passes", 1)
    with progress(len(mine) * epochs, label, unit="epoch") as bar:
        if compute.compile:
            bar.set_postfix_str("the first epoch may compile, which takes longer")
        for group, of_each in groups(mine, threads, how.parallel_networks):
            if all(index in kept for index in group):
                bar.update(len(group) * epochs)
                continue
            seeds = [derive(seed, "evaluation", index) for index in group]
            models = [compute.place(build(name, info, generator(own, "network"), options)) for own in seeds]
            theirs = [kernels if len(group) == 1 else kernels.thread_local() for _ in models]
            side_by_side(train, list(zip(models, seeds, theirs, strict=True)), of_each, on_step=bar.update)
            for index, model in zip(group, models, strict=True):
                found = [accuracy(predict(model, against.images, info, kernels), against.labels)]
                if how.last_layer == "ridge":
                    fit_last_layer(model, images, labels, info, kernels, how.last_layer_penalty)
                    found.append(accuracy(predict(model, against.images, info, kernels), against.labels))
                kept.add(index, found)
                bar.set_postfix(accuracy=f"{found[-1]:.4f}")
    found = [kept[index] for index in mine]
    before = [as_trained for as_trained, *fitted in found if fitted]
    results = [accuracies[-1] for accuracies in found]
    return Evaluation(tuple(ranks.gather(results)), split, epochs, tuple(ranks.gather(before)))


def groups(indices: Sequence[int], threads: int, most: int) -> Iterator[tuple[Sequence[int], int]]:
    """Yield the networks that train side by side, up to ``most``, and the CPU threads of each.

    >>> list(groups([0, 1, 2], threads=2, most=2))
    [([0, 1], 1), ([2], 2)]
    """
    start = 0
    for parallel_networks, of_each in shares(len(indices), threads, most):
        yield indices[start : start + parallel_networks], of_each
        start += parallel_networks


def curve(
    synthetic: SyntheticSet,
    snapshots: dict[int, Tensor],
    validation: LabeledImages,
    info: DatasetInfo,
    how: EvaluationParams,
    network: tuple[str, dict[str, Any]],
    compute: Compute,
    *,
    seed: int,
) -> Iterator[tuple[int, Evaluation]]:
    """Accuracy of the canvases kept along the way, on the validation split, under the short ``curve_*`` protocol.

    What else the set has, soft labels or learned rates, is that of its end.
    """
    for iteration, canvases in sorted(snapshots.items()):
        at = replace(synthetic, canvases=canvases)
        yield iteration, evaluate(
            at, validation, info, how, network, compute, seed=seed, split="validation",
            repeats=how.curve_networks, epochs=how.curve_epochs, label=f"curve at {iteration}",
        )  # fmt: skip
