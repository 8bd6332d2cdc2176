"""The project's best sets: gathered from the studies that made them, and compared with what others published.

``python -m pipeline.studies.best_sets IPC`` gathers those of one ipc from the study best_ipc<IPC> into results/best.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib._engine.files import read_json, write_json
from dreamlib.settings import OF_EVERY_PROTOCOL, EvaluationParams
from dreamlib.synthetic.synthetic_set import BEST, SyntheticSet
from pipeline.launch_notebook import exit_status
from pipeline.project import Project, Setting
from pipeline.report import figures
from pipeline.report.tables import markdown, percent

COLUMNS = ["ipc", "method", "test accuracy (%)", "evaluation", "factor", "stored floats", "networks × seeds", "source"]
OWN = "own evaluation"  # marks a row that does not compare with the published ones


def gather(project: Project, ipc: int) -> dict[str, Any]:
    """Keep the first seed's set of a study of one method, with the accuracies of all its seeds; returns the numbers.

    Writes results/best/<dataset>-ipc<ipc>.safetensors, .png (its contact sheet) and .json. The first seed's set stands
    for the method whatever it scored. The accuracies by IDC's protocol untouched, which compare with published ones,
    are kept under 'idc': those of the view 'idc', or of the protocol where it is IDC's. Raises ValueError for a study
    of several methods.
    """
    p = project.params
    if len(p.methods) != 1:
        raise ValueError(f"study {project.study} lists methods {p.methods}; the best set comes from one: list it alone")
    settings = [Setting(p.methods[0], ipc, seed) for seed in p.seeds]
    found = [read_json(project.file("evaluation", setting, ".json")) for setting in settings]
    accuracies = [accuracy for each in found for accuracy in each["accuracies"]]
    how = p.evaluation(p.methods[0], ipc)
    by_idc = [_by_idc(each, how) for each in found]
    path = project.root / BEST / f"{p.dataset}-ipc{ipc}.safetensors"
    synthetic = SyntheticSet.open(project.file("sets", settings[0], ".safetensors"))
    synthetic.save(path)
    shown = project.pictures(synthetic)
    figures.write_contact_sheet(shown, synthetic.num_classes, path.with_suffix(".png"), scale=2 if ipc > 1 else 4)
    shared = ("protocol", "epochs", "method", "factor", "stored_floats", "label_kind", "networks")
    numbers = {key: found[0][key] for key in shared} | {
        "accuracy": statistics.fmean(accuracies),
        "std": _std(accuracies),
        "accuracies": accuracies,
        "seeds": p.seeds,
        "decode": synthetic.rule,
        "study": project.study,
        "augmentation_mode": how.augmentation_mode,
        "iterations": read_json(project.file("distillation", settings[0], ".json"))["iterations"],
    }
    if asked := [accuracies for accuracies in by_idc if accuracies]:
        every = [accuracy for accuracies in asked for accuracy in accuracies]
        numbers["idc"] = {"accuracy": statistics.fmean(every), "std": _std(every), "accuracies": every}
        numbers["idc"] |= {"networks": len(asked[0]), "seeds": len(asked)}
    write_json(path.with_suffix(".json"), numbers)
    return numbers


def _by_idc(evaluated: dict[str, Any], how: EvaluationParams) -> list[float]:
    """The accuracies of one set by IDC's protocol untouched; empty where it was not evaluated so."""
    views = {view["view"]: view["accuracies"] for view in evaluated["views"]}
    shared = set(OF_EVERY_PROTOCOL)
    untouched = how.model_dump(exclude=shared) == EvaluationParams().model_dump(exclude=shared)
    return views.get("idc") or (views["protocol"] if untouched else [])


def best_sets(root: Path, dataset: str) -> pd.DataFrame:
    """One row per results/best/<dataset>-ipc<ipc>.json, in order of ipc; empty where there is none."""
    rows = []
    for path in (root / BEST).glob(f"{dataset}-ipc*.json"):
        rows.append(read_json(path) | {"ipc": int(path.stem.rpartition("-ipc")[2])})
    return pd.DataFrame(rows).sort_values("ipc", ignore_index=True) if rows else pd.DataFrame()


def _std(accuracies: list[float]) -> float:
    return statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def record_table(root: Path, dataset: str) -> pd.DataFrame:
    """Our best sets and the published accuracies of a data set, for every ipc, best first.

    All by IDC's protocol or the papers' own, the last layer as trained; hard labels and equal storage. Our sets under
    their own evaluation follow at the end of their ipc, marked. Published figures that we know from other papers only
    are left out: see ``unverified_table``.
    """
    published = _published(root, dataset)
    rows = [
        (
            (r.ipc, 0, -r.accuracy),
            {"ipc": r.ipc, "method": r.method, "test accuracy (%)": _published_percent(r), "factor": r.factor}
            | {"evaluation": "as published", "source": r.source},
        )
        for r in published[published.verified].itertuples()
    ]
    for r in best_sets(root, dataset).itertuples():
        ours = {
            "ipc": r.ipc,
            "method": f"here: {r.method}" + ("" if r.label_kind == "hard" else ", soft labels"),
            "factor": f"{r.factor} (frequencies)" if r.decode == "dct" else r.factor,
            "stored floats": f"{r.stored_floats:,}",
            "source": "results/best",
        }
        if isinstance(idc := getattr(r, "idc", None), dict):
            told = {"test accuracy (%)": percent(idc["accuracy"], idc["std"]), "evaluation": "idc, 1000 epochs"}
            told["networks × seeds"] = f"{idc['networks']} × {idc['seeds']}"
            rows.append(((r.ipc, 0, -100 * idc["accuracy"]), ours | told))
        if (r.protocol, r.augmentation_mode) != ("idc", "idc"):
            drawn = ", augmentation drawn per image" if r.augmentation_mode == "idc_per_image" else ""
            told = {
                "test accuracy (%)": percent(r.accuracy, r.std),
                "evaluation": f"{OWN}: {r.protocol}, {r.epochs} epochs{drawn}",
            }
            told["networks × seeds"] = f"{r.networks} × {len(r.seeds)}"
            rows.append(((r.ipc, 1, -100 * r.accuracy), ours | told))
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return pd.DataFrame(ordered, columns=COLUMNS).astype(object).fillna("–").set_index("ipc")


def unverified_table(root: Path, dataset: str) -> pd.DataFrame:
    """Published accuracies (%) that we could not check against their source, one row a method, one column an ipc."""
    published = _published(root, dataset)
    chosen = published[~published.verified]
    chosen = chosen.assign(accuracy=[_published_percent(row) for row in chosen.itertuples()])
    return chosen.pivot(index=["method", "source"], columns="ipc", values="accuracy").fillna("–")


def _published(root: Path, dataset: str) -> pd.DataFrame:
    published = pd.read_csv(root / "notebooks" / "published.csv", true_values=["yes"], false_values=["no"])
    return published[published.dataset == dataset]


def _published_percent(row: Any) -> str:
    return f"{row.accuracy:.1f}" + ("" if math.isnan(row.std) else f" ± {row.std:.1f}")


def record_sentence(root: Path, dataset: str) -> str:
    """What the table holds of ours, in one sentence; says so when it is nothing yet."""
    ours = best_sets(root, dataset)
    if ours.empty:
        return f"No best set of {dataset} is kept in results/best yet, so the table shows the published numbers alone."
    listed = []
    for r in ours.itertuples():
        found = r.idc if isinstance(getattr(r, "idc", None), dict) else None
        if found:
            listed.append(f"ipc {r.ipc}: {percent(found['accuracy'], found['std'])} %")
    found = ", ".join(listed) or "nothing yet: they were not evaluated by it"
    return (
        f'By IDC\'s protocol, the last layer as trained, the best sets this project keeps (`dreamlib.load("{dataset}", '
        f'ipc=…)`) reach {found}. Rows marked "{OWN}" follow another protocol and do not compare with published ones.'
    )


def best_sets_text(root: Path) -> str:
    """Return the tables of docs/results.md: our best sets beside published ones, and figures we could not verify."""
    table = record_table(root, "fashion_mnist").reset_index()
    unverified = unverified_table(root, "fashion_mnist").reset_index()
    return (
        markdown(table.columns, table.values)
        + "\nNot verified by us (figures known from other papers only):\n\n"
        + markdown(map(str, unverified.columns), unverified.values)
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status, with one line on standard error where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.studies.best_sets", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("ipc", type=int, help="gather the sets of this ipc")
    ipc = parser.parse_args(arguments).ipc
    return exit_status(lambda: gather(Project.open(study=f"best_ipc{ipc}"), ipc))


if __name__ == "__main__":
    sys.exit(main())
