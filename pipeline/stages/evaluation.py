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
from dreamlib.evaluation import Evaluation, PartialResults, apply_view, curve, evaluate, test_split
from dreamlib.settings import EvaluationParams, NetworkParams, digest
from dreamlib.synthetic.synthetic_set import SyntheticSet
from pipeline.project import Project, Setting
from pipeline.report.provenance import code_hash
from pipeline.stages.distillation import read_set, read_snapshots


def evaluated_networks(project: Project, how: EvaluationParams) -> list[NetworkParams]:
    """The networks a set is evaluated on: ``evaluation.networks``, else the matched one."""
    return list(how.networks) or [project.params.network]


def run_evaluation(
    project: Project, setting: Setting, networks: Sequence[NetworkParams] | None = None
) -> tuple[Evaluation, pd.DataFrame]:
    """Evaluate one set on the test images, and its snapshots on the validation images.

    The first of ``networks`` (by default those of params.yaml) stands for the set; the others and the protocol's views
    are listed beside it. Writes results/evaluation/<name>.json (metrics) and results/curves/<name>.csv (iteration,
    accuracy, std, networks). A whitened set is evaluated on images whitened alike. With ``compute.workers`` above 1
    that many processes share the networks to train.
    """
    project.require(setting.method, setting.ipc, setting.seed)
    how, began = project.params.evaluation(setting.method, setting.ipc), time.perf_counter()
    networks = list(networks or evaluated_networks(project, how))
    if project.delegated("evaluation", setting, f"--networks={json.dumps([n.model_dump() for n in networks])}"):
        return read_evaluation(project, setting)
    synthetic, snapshots = read_set(project, setting), _wanted_snapshots(project, setting, how)
    test, info = project.seen_with(
        test_split(project.params.dataset, project.root / project.params.data.directory, project.params.data.options),
        synthetic,
    )
    asked = [(network, "protocol") for network in networks] + [(networks[0], view) for view in how.views]
    rows, found, partial = [], [], []
    for network, view in asked:
        hard = synthetic.soft_labels is None and not how.label_smoothing
        same = view == "hard_labels" and hard  # the protocol has said it already
        seen, protocol = apply_view(view, synthetic, how)
        if not same:
            partial.append(_partial(project, setting, seen, protocol, network))
        found.append(
            found[0]
            if same
            else evaluate(
                seen, test, info, protocol, (network.name, network.options), project.compute, seed=setting.seed,
                split="test", label=f"{setting.name}, {network.name}, {view}", partial=partial[-1],
            )
        )  # fmt: skip
        rows.append(
            {"network": network.label, "view": view, "protocol": protocol.protocol, "epochs": found[-1].epochs}
            | {"accuracies": list(found[-1].accuracies)}
            | {"accuracy": found[-1].mean, "std": found[-1].std}
            | ({"as_trained": list(found[-1].as_trained)} if found[-1].as_trained else {})
        )
    evaluated = time.perf_counter() - began
    points = _curve_rows(project, setting, synthetic, snapshots, how, networks[0])
    if not ranks.first():
        for each in partial:
            each.delete()
        return found[0], points
    metrics = _metrics(setting, found[0], how, synthetic) | {"views": rows, "network": networks[0].label}
    write_json(project.file("evaluation", setting, ".json"), metrics)
    write_atomically(project.file("curves", setting, ".csv"), points.to_csv(index=False).encode())
    for each in partial:
        each.delete()
    seconds = {"evaluation": evaluated, "curve": time.perf_counter() - began - evaluated}
    project.note(f"evaluation-{setting.name}", seconds)
    return found[0], points


def read_evaluation(project: Project, setting: Setting) -> tuple[Evaluation, pd.DataFrame]:
    """An evaluation and its curve, read back from their files."""
    found = read_json(project.file("evaluation", setting, ".json"))
    points = pd.read_csv(project.file("curves", setting, ".csv"))
    as_trained = tuple(found["views"][0].get("as_trained", ()))
    return Evaluation(tuple(found["accuracies"]), found["split"], found["epochs"], as_trained), points


def _partial(
    project: Project, setting: Setting, synthetic: SyntheticSet, how: EvaluationParams, network: NetworkParams
) -> PartialResults:
    """Where an evaluation keeps what it has found until it is whole: named after everything that shapes its results."""
    stored = [synthetic.canvases, *synthetic.extras.values()]
    stored += [] if synthetic.soft_labels is None else [synthetic.soft_labels]
    what = [hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in stored], synthetic.info
    compute = project.used_params.compute
    code = code_hash(project.stage("evaluation"), project.root)
    key = digest(what, how, network, setting.seed, project.data_hash, compute, code)
    name = f"{setting.name}-{key}" + (f"-{ranks.rank()}" if ranks.world() > 1 else "")
    return PartialResults(project.root / ".dream" / "evaluations" / f"{name}.json")


def _wanted_snapshots(project: Project, setting: Setting, how: EvaluationParams) -> dict[int, Tensor]:
    """The snapshots that a curve is made of, none where none is asked for; read before any training."""
    if how.curve_networks == 0 or project.params.validation_per_class == 0:
        return {}
    return read_snapshots(project, setting)


def _curve_rows(
    project: Project,
    setting: Setting,
    synthetic: SyntheticSet,
    snapshots: dict[int, Tensor],
    how: EvaluationParams,
    network: NetworkParams,
) -> pd.DataFrame:
    columns = ["iteration", "accuracy", "std", "networks"]
    if len(snapshots) < 2:
        return pd.DataFrame(columns=columns)
    validation, info = project.seen_with(project.split("validation"), synthetic)
    chosen = network.name, network.options
    points = curve(synthetic, snapshots, validation, info, how, chosen, project.compute, seed=setting.seed)
    rows = [(iteration, e.mean, e.std, len(e.accuracies)) for iteration, e in points]
    return pd.DataFrame(rows, columns=columns)


def _metrics(setting: Setting, done: Evaluation, how: EvaluationParams, synthetic: SyntheticSet) -> dict[str, Any]:
    return {
        "accuracy": done.mean,
        "std": done.std,
        "accuracies": list(done.accuracies),
        "networks": len(done.accuracies),
        "epochs": done.epochs,
        "protocol": how.protocol,
        "split": done.split,
        "method": setting.method,
        "ipc": setting.ipc,
        "seed": setting.seed,
        "factor": synthetic.factor,
        "label_kind": "hard" if synthetic.soft_labels is None else "soft",
        "stored_floats": synthetic.stored_floats + (synthetic.learned_floats if how.learned_lr or how.replay else 0),
    }
