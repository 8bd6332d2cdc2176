"""The evaluation stage: from sets to accuracies."""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from dreamlib._engine import ranks
from dreamlib._engine.files import read_json, write_atomically, write_json
from dreamlib.data.types import DatasetInfo, LabeledImages
from dreamlib.evaluation import Evaluation, PartialResults, apply_view, curve, evaluate, test_split
from dreamlib.settings import EvaluationParams, NetworkParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.project import Project, Setting, code_hash
from pipeline.stages.distillation import read_set, read_snapshots


def evaluated_networks(project: Project, protocol: EvaluationParams) -> list[NetworkParams]:
    """Return the networks on which a set is evaluated: ``evaluation.networks``, else the matched one."""
    return list(protocol.networks) or [project.params.network]


def run_evaluation(
    project: Project, setting: Setting, networks: Sequence[NetworkParams] | None = None
) -> tuple[Evaluation, pd.DataFrame]:
    """Evaluate one set on the test images, and its snapshots on the validation images.

    The accuracy of the first of ``networks`` (by default those of params.yaml) is reported for the set; the results of
    the others and of the protocol's views are listed with it. Write results/evaluation/<name>.json (metrics) and
    results/curves/<name>.csv (iteration, accuracy, std, networks). A whitened set is evaluated on images whitened in
    the same way. With ``compute.workers`` above 1 that many processes share the networks to train.
    """
    project.require_listed(setting.method, setting.ipc, setting.seed)
    project.require_writable(*(project.file(kind, setting, "") for kind in ("evaluation", "curves")))
    protocol, began = project.params.evaluation(setting.method, setting.ipc), time.perf_counter()
    networks = list(networks or evaluated_networks(project, protocol))
    if project.run_in_workers("evaluation", setting, f"--networks={json.dumps([n.model_dump() for n in networks])}"):
        return read_evaluation(project, setting)
    synthetic, snapshots = read_set(project, setting), _wanted_snapshots(project, setting, protocol)
    test, info = seen_test_images(project, synthetic)
    network_views = [(network, "protocol") for network in networks] + [(networks[0], view) for view in protocol.views]
    evaluations, views, partials = [], [], []
    for network, view in network_views:
        view_set, view_protocol = apply_view(view, synthetic, protocol)
        if view == "hard_labels" and synthetic.soft_labels is None:
            evaluations.append(evaluations[0])  # the labels are hard already
        else:
            partials.append(partial_results(project, setting.name, view_set, view_protocol, network, setting.seed))
            done = evaluate(
                view_set, test, info, view_protocol, (network.name, network.options), project.compute,
                seed=setting.seed, split="test", label=f"{setting.name}, {network.name}, {view}", partial=partials[-1],
            )  # fmt: skip
            evaluations.append(done)
        views.append(_view_metrics(network, view, view_protocol, evaluations[-1]))
    evaluated = time.perf_counter() - began
    points = _curve_rows(project, setting, synthetic, snapshots, protocol, networks[0])
    if ranks.first():
        metrics = {key: value for key, value in views[0].items() if key not in ("view", "as_trained")}
        metrics |= {
            "networks": len(evaluations[0].accuracies),
            "split": evaluations[0].split,
            "method": setting.method,
            "ipc": setting.ipc,
            "seed": setting.seed,
            "factor": synthetic.factor,
            "label_kind": "hard" if synthetic.soft_labels is None else "soft",
            "stored_floats": used_floats(synthetic, protocol),
            "views": views,
        }
        write_json(project.file("evaluation", setting, ".json"), metrics)
        write_atomically(project.file("curves", setting, ".csv"), points.to_csv(index=False).encode())
        seconds = {"evaluation": evaluated, "curve": time.perf_counter() - began - evaluated}
        project.record_timings(f"evaluation-{setting.name}", seconds)
    for partial in partials:
        partial.delete()
    return evaluations[0], points


def read_evaluation(project: Project, setting: Setting) -> tuple[Evaluation, pd.DataFrame]:
    """Return an evaluation and its curve, read from their files."""
    metrics = read_json(project.file("evaluation", setting, ".json"))
    points = pd.read_csv(project.file("curves", setting, ".csv"))
    as_trained = tuple(metrics["views"][0].get("as_trained", ()))
    return Evaluation(tuple(metrics["accuracies"]), metrics["split"], metrics["epochs"], as_trained), points


def seen_test_images(project: Project, synthetic: SyntheticSet) -> tuple[LabeledImages, DatasetInfo]:
    """Return the test images in the units of a set's canvases, and their description."""
    p = project.params
    return project.images_in_units_of(test_split(p.dataset, project.root / p.data.directory, p.data.options), synthetic)


def content_hash(synthetic: SyntheticSet) -> str:
    """Return a hash of everything a network trained on a set can depend on: its tensors and its metadata."""
    stored = [synthetic.canvases, synthetic.labels, *synthetic.extras.values()]
    stored += [] if synthetic.soft_labels is None else [synthetic.soft_labels]
    contents = [hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in stored]
    return digest(contents, synthetic.info)


def partial_results(
    project: Project, name: str, synthetic: SyntheticSet, protocol: EvaluationParams, network: NetworkParams, seed: int
) -> PartialResults:
    """Return the store of an unfinished evaluation's results, named after everything that affects them.

    name: prefix of the file's name. The other arguments are those of ``dreamlib.evaluate``.
    """
    compute = project.used_params.compute
    contents, code = content_hash(synthetic), code_hash(project.root)
    key = digest(contents, protocol, network, seed, project.data_hash, compute, code)
    name = f"{name}-{key}" + (f"-{ranks.rank()}" if ranks.world() > 1 else "")
    return PartialResults(project.root / ".dream" / "evaluations" / f"{name}.json")


def _wanted_snapshots(project: Project, setting: Setting, protocol: EvaluationParams) -> dict[int, Tensor]:
    """Return the snapshots behind a curve, empty if no curve is drawn; read before any training."""
    if protocol.curve_networks == 0 or project.params.validation_per_class == 0:
        return {}
    return read_snapshots(project, setting)


def _curve_rows(
    project: Project,
    setting: Setting,
    synthetic: SyntheticSet,
    snapshots: dict[int, Tensor],
    protocol: EvaluationParams,
    network: NetworkParams,
) -> pd.DataFrame:
    columns = ["iteration", "accuracy", "std", "networks"]
    if len(snapshots) < 2:
        return pd.DataFrame(columns=columns)
    validation, info = project.images_in_units_of(project.split("validation"), synthetic)
    chosen = network.name, network.options
    points = curve(synthetic, snapshots, validation, info, protocol, chosen, project.compute, seed=setting.seed)
    rows = [(iteration, e.mean, e.std, len(e.accuracies)) for iteration, e in points]
    return pd.DataFrame(rows, columns=columns)


def _view_metrics(
    network: NetworkParams, view: str, protocol: EvaluationParams, evaluation: Evaluation
) -> dict[str, Any]:
    metrics = {
        "network": network.label,
        "view": view,
        "protocol": protocol.protocol,
        "epochs": evaluation.epochs,
        "accuracies": list(evaluation.accuracies),
        "accuracy": evaluation.mean,
        "std": evaluation.std,
    }
    return metrics | ({"as_trained": list(evaluation.as_trained)} if evaluation.as_trained else {})


def used_floats(synthetic: SyntheticSet, protocol: EvaluationParams) -> int:
    """Return the number of floats a set stores for a protocol; learned scalars count if the protocol uses them."""
    learned = synthetic.learned_floats if protocol.learned_lr or protocol.replay else 0
    return synthetic.stored_floats + learned
