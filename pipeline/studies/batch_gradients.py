"""Compare kinds of real batches by their class gradients while a network trains (DREAM §3.1).

``python -m pipeline.studies.batch_gradients`` trains one network per seed. It measures how far each kind's gradients
are from the gradient of the whole class, how much they vary, and how evenly the batches cover the class.
"""

import sys
import time
from dataclasses import dataclass

import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from dreamlib._engine.compiled_network import CompiledNetwork
from dreamlib._engine.files import write_atomically
from dreamlib._engine.seeding import generator
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.matching.gradient import matched_weights
from dreamlib.networks import build
from dreamlib.sampling.coverage import clusters_hit, nearest_distance
from dreamlib.sampling.kmeans import kmeans
from dreamlib.sampling.real_batches import SAMPLERS, IntervalSampler, class_pool
from dreamlib.settings import DistillParams
from dreamlib.training.features import embed, predict
from dreamlib.training.matched_network import network_settings
from dreamlib.training.trainer import Trainer, compiled_network
from pipeline.failures import exit_status
from pipeline.launch_notebook import restart_prepared
from pipeline.params import BatchesParams, read_claims
from pipeline.project import Project
from pipeline.report.results import CLAIMS_FOLDER, MEASURED_STUDY

KINDS = ("random", "representative", "center", "boundary")
DRAWN = ("random", "representative")  # kinds that differ between draws; the others always give the same batch


# ---- the measures, which need only dreamlib ---------------------------------------------------------------------


def class_pools(data: LabeledImages, pool: int, seed: int) -> tuple[LabeledImages, Tensor]:
    """Return ``pool`` random images of every class, which represent the class, and their rows in ``data``."""
    rows = [class_pool(data, c, pool, generator(seed, "batches-pool", c)) for c in range(data.num_classes)]
    return data.subset(torch.cat(rows)), torch.cat(rows)


def class_gradient(
    network: nn.Module, images: Tensor, label: int, info: DatasetInfo, kernels: CompiledNetwork, chunk: int
) -> Tensor:
    """Return the gradient (P,) of one class's mean cross-entropy with respect to the convolution weights.

    It is summed over parts of ``chunk`` images, so that one compiled shape serves batches and whole classes.
    """
    matched, fixed = matched_weights(network, "conv")
    total = torch.zeros(sum(w.numel() for w in matched.values()), device=images.device)
    for part in images.split(chunk):
        x, y = kernels.compute.cast(info.normalise(part)), torch.full((len(part),), label, device=images.device)
        gradient = kernels.weight_gradient(matched, fixed, x, y)
        total += len(part) * torch.cat([g.flatten().float() for g in gradient.values()])
    return total / len(images)


def gradient_measures(full: Tensor, draws: Tensor) -> dict[str, float]:
    """Compare the gradients of R batches, ``draws`` (R, P), with that of the whole class, ``full`` (P,).

    Return

    - norm, full_norm: mean length of the draws; length of ``full``
    - distance: mean distance of the draws to ``full``, relative to its length
    - norm_std: standard deviation of the lengths over draws, missing for a single draw
    - variance: mean squared distance of the draws to their mean, relative to ‖full‖²; a sample estimate too

    >>> measures = gradient_measures(torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 0.0], [3.0, 8.0]]))
    >>> measures["distance"], measures["variance"]  # 4/5; 16 + 16 over R − 1 = 1, over 25
    (0.8, 1.28)
    """
    full, draws = full.double(), draws.double()
    length, lengths, count = full.norm(), draws.norm(dim=1), len(draws)
    apart = (draws - draws.mean(0)).square().sum(1)
    return {
        "norm": float(lengths.mean()),
        "full_norm": float(length),
        "distance": float((draws - full).norm(dim=1).mean() / length),
        "norm_std": float(lengths.std()) if count > 1 else float("nan"),
        "variance": float(apart.sum() / (count - 1) / length.square()) if count > 1 else float("nan"),
    }


@dataclass
class BatchStudy:
    """Comparison under one network of batches of ``size`` images per class, taken from ``data``."""

    data: LabeledImages
    info: DatasetInfo
    kernels: CompiledNetwork
    size: int
    draws: int
    seed: int

    def features(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and logits (N, K) of all images."""
        images = self.data.images
        return embed(network, images, self.info, self.kernels), predict(network, images, self.info, self.kernels)

    def batches(self, kind: str, label: int, features: Tensor, logits: Tensor, point: int) -> list[Tensor]:
        """Return the batches of one kind, as rows among the class's images: ``draws`` of them for ``DRAWN`` kinds."""
        members = self.data.of_class(label)
        place = torch.full((len(self.data),), -1, device=members.device)
        place[members] = torch.arange(len(members), device=members.device)
        sampler, batches = SAMPLERS[kind](self.data, self.size, self.seed), []
        for draw in range(self.draws if kind in DRAWN else 1):
            if isinstance(sampler, IntervalSampler):
                rng = generator(self.seed, "batches", label, point, draw)
                rows = sampler.choose(label, members, rng, lambda _: features[members], lambda _: logits[members])
            else:
                rows = sampler.rows(label, point * self.draws + draw)
            batches.append(place[rows])
        return batches

    def measure(self, network: nn.Module, point: int) -> pd.DataFrame:
        """Measure all kinds and classes at one point of the training; see ``gradient_measures`` and ``coverage``."""
        features, logits = self.features(network)
        rows = []
        for label in range(self.data.num_classes):
            members = self.data.of_class(label)
            images, class_features = self.data.pixels(members), features[members].float()
            full = class_gradient(network, images, label, self.info, self.kernels, self.size)
            rng = generator(self.seed, "batches-reference", label, point)
            groups = kmeans(
                class_features.unsqueeze(0), min(self.size, len(members)), rng, max_iterations=10
            ).assignment[0]
            for kind in KINDS:
                chosen = self.batches(kind, label, features, logits, point)
                gradients = [
                    class_gradient(network, images[b], label, self.info, self.kernels, self.size) for b in chosen
                ]
                fixed = {"point": point, "class": self.info.classes[label], "batch": kind, "images": len(chosen[0])}
                covered = coverage(class_features, groups, chosen)
                rows.append(fixed | gradient_measures(full, torch.stack(gradients)) | covered)
        return pd.DataFrame(rows)


def coverage(features: Tensor, groups: Tensor, batches: list[Tensor]) -> dict[str, float]:
    """Return how evenly batches cover a class, as means over the batches.

    - nearest_distance: mean distance from the class's images to the nearest batch member, relative to their mean
      distance from the class mean, because features grow while a network trains
    - clusters_hit: share of ``groups`` with a batch member

    >>> features, groups = torch.tensor([[0.0], [2.0], [6.0], [8.0]]), torch.tensor([0, 0, 1, 1])
    >>> coverage(features, groups, [torch.tensor([0, 1])])  # distances 0 0 4 6; to the mean 4, 4 2 2 4
    {'nearest_distance': 0.833..., 'clusters_hit': 0.5}
    """
    scale = float((features - features.mean(0)).norm(dim=1).mean())
    far = [nearest_distance(features, b) / scale for b in batches]
    hit = [clusters_hit(groups, b) for b in batches]
    return {"nearest_distance": sum(far) / len(far), "clusters_hit": sum(hit) / len(hit)}


# ---- the study --------------------------------------------------------------------------------------------------


def run_batches(project: Project, plan: BatchesParams) -> pd.DataFrame:
    """Measure every kind of batch at every point, class and seed; see ``BatchStudy.measure``.

    Write results/claims/batches.csv (every number) and results/claims/picture.csv: the images of class ``plan.shown``
    in the first seed's network at the last point, on their first two principal components, and which images each kind
    picks.
    """
    began, tables = time.perf_counter(), []
    settings = project.params.distillation("dream", project.params.ipc[0])
    data = project.split("train").to(project.compute.device)
    for seed in project.params.seeds:
        images, rows = class_pools(data, plan.pool, seed)
        kernels = compiled_network(project.network, project.info, project.compute)
        study = BatchStudy(images, project.info, kernels, settings.real_batch, plan.draws, seed)
        trainer, step = _trainer(project, settings, kernels, seed), 0
        for point in sorted(plan.points):
            while step < point:
                _train_step(trainer, data, settings, seed, step)
                step += 1
            tables.append(study.measure(trainer.network, point).assign(seed=seed))
        if seed == project.params.seeds[0]:
            picture = _picture(study, trainer, rows, plan.shown, max(plan.points))
    table, folder = pd.concat(tables, ignore_index=True), project.root / CLAIMS_FOLDER
    for name, written in (("batches", table), ("picture", picture)):
        write_atomically(folder / f"{name}.csv", written.to_csv(index=False, float_format="%.6g").encode())
    project.record_timings("batches", {"total": time.perf_counter() - began})
    return table


def _trainer(project: Project, settings: DistillParams, kernels: CompiledNetwork, seed: int) -> Trainer:
    """Return the trainer of a fresh network, with the settings of the distillation's networks."""
    name, options = project.network
    network = project.compute.place(build(name, project.info, generator(seed, "batches-network"), options))
    return Trainer(network, project.info, network_settings(settings, project.info), kernels)


def _train_step(trainer: Trainer, data: LabeledImages, settings: DistillParams, seed: int, step: int) -> None:
    rng = generator(seed, "batches-train", step)
    rows = torch.randint(len(data), (settings.network_batch,), generator=rng).to(data.labels.device)
    trainer.step(data.images[rows], data.labels[rows], rng)


def _picture(study: BatchStudy, trainer: Trainer, rows: torch.Tensor, label: int, point: int) -> pd.DataFrame:
    features, logits = study.features(trainer.network)
    members = study.data.of_class(label)
    plane = PCA(2, svd_solver="full", random_state=0).fit_transform(features[members].double().cpu().numpy())
    table = pd.DataFrame({"row": rows.to(members.device)[members].tolist(), "x": plane[:, 0], "y": plane[:, 1]})
    for kind in KINDS:
        picked = torch.zeros(len(members), dtype=torch.long)
        picked[study.batches(kind, label, features, logits, point)[0].cpu()] = 1
        table[kind] = picked.numpy()
    return table


if __name__ == "__main__":
    restart_prepared("pipeline.studies.batch_gradients")
    sys.exit(exit_status(lambda: run_batches(Project.open(study=MEASURED_STUDY), read_claims().batches)))
