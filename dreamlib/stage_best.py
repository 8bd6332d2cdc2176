"""The project's best sets: gathered from the studies that made them, and set beside what others published.

``python -m dreamlib.stage_best IPC`` gathers those of one ipc from the study best_ipc<IPC> into results/best;
``python -m dreamlib.stage_best readme`` writes the table into README.md.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib import figures
from dreamlib.files import read_json, write_atomically, write_json
from dreamlib.params import find_root
from dreamlib.project import Project, Setting
from dreamlib.run import exit_status
from dreamlib.synthetic import BEST, SyntheticSet
from dreamlib.tables import between, markdown, percent

BEGIN, END = "<!-- best sets: written by `python -m dreamlib.stage_best readme` -->", "<!-- end of best sets -->"
COLUMNS = ["ipc", "method", "test accuracy (%)", "factor", "stored floats", "iterations", "networks × seeds"]
COLUMNS += ["seconds", "source"]
BESIDE = {"hard_labels": "labels unsmoothed", "as_trained": "last layer as trained"}  # what a row says of the same sets


def gather(project: Project, ipc: int) -> dict[str, Any]:
    """Keep the first seed's set of a study of one method, with the accuracies of all its seeds; returns the numbers.

    Writes results/best/<dataset>-ipc<ipc>.safetensors, .png (its contact sheet) and .json. The first seed's set stands
    for the method whatever it scored. Where the evaluation has the view 'hard_labels' (without label smoothing), or
    fits the last layer anew, the accuracy without it is kept beside the protocol's. Raises ValueError for a study of
    several methods.
    """
    p = project.params
    if len(p.methods) != 1:
        raise ValueError(f"study {project.study} lists methods {p.methods}; the best set comes from one: list it alone")
    settings = [Setting(p.methods[0], ipc, seed) for seed in p.seeds]
    found = [read_json(project.file("evaluation", setting, ".json")) for setting in settings]
    accuracies = [accuracy for each in found for accuracy in each["accuracies"]]
    views = [view for each in found for view in each["views"]]
    beside = {
        "hard_labels": [a for view in views if view["view"] == "hard_labels" for a in view["accuracies"]],
        "as_trained": [a for each in found for a in each["views"][0].get("as_trained", [])],
    }
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
        "iterations": read_json(project.file("distillation", settings[0], ".json"))["iterations"],
    }
    for name, others in beside.items():
        if others:
            numbers[name] = {"accuracy": statistics.fmean(others), "std": _std(others)}
    write_json(path.with_suffix(".json"), numbers)
    return numbers


def best_sets(root: Path, dataset: str) -> pd.DataFrame:
    """One row per results/best/<dataset>-ipc<ipc>.json, in order of ipc; empty where there is none."""
    rows = []
    for path in (root / BEST).glob(f"{dataset}-ipc*.json"):
        rows.append(read_json(path) | {"ipc": int(path.stem.rpartition("-ipc")[2])})
        rows[-1]["seconds"] = _seconds(root, rows[-1])
    return pd.DataFrame(rows).sort_values("ipc", ignore_index=True) if rows else pd.DataFrame()


def _seconds(root: Path, best: dict[str, Any]) -> float:
    """What distilling the kept set took, by the record of the machine that made it; nan without one."""
    path = root / BEST / "record.json"
    record = read_json(path) if path.is_file() else {}
    name = Setting(best["method"], best["ipc"], best["seeds"][0]).name
    entry = record.get(f"{best['study']}/distillation-{name}")
    return sum(entry["seconds"].values()) if entry else float("nan")


def _std(accuracies: list[float]) -> float:
    return statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def record_table(root: Path, dataset: str) -> pd.DataFrame:
    """Ours and the published accuracies for every ipc of the data set, best first within an ipc.

    Ours carry iterations, networks, protocol and seconds; of the published, what notebooks/published.csv has. All of
    it hard labels and equal storage unless a row says otherwise.
    """
    published = pd.read_csv(root / "notebooks" / "published.csv")
    published = published[published.dataset == dataset]
    rows = [
        (r.accuracy, {"ipc": r.ipc, "method": r.method}
         | {"test accuracy (%)": f"{r.accuracy:.1f}" + ("" if math.isnan(r.std) else f" ± {r.std:.1f}")}
         | {"factor": r.factor, "source": r.source})
        for r in published.itertuples()
    ]  # fmt: skip
    for r in best_sets(root, dataset).itertuples():
        soft = "" if r.label_kind == "hard" else ", soft labels"
        others = ((told, getattr(r, name, None)) for name, told in BESIDE.items())
        beside = "".join(
            f"; {told} {percent(other['accuracy'], other['std'])}" for told, other in others if isinstance(other, dict)
        )
        rows.append(
            (100 * r.accuracy, {"ipc": r.ipc, "method": f"here: {r.method}{soft}"}
             | {"test accuracy (%)": percent(r.accuracy, r.std)}
             | {"factor": f"{r.factor} (frequencies)" if r.decode == "dct" else r.factor}
             | {"stored floats": f"{r.stored_floats:,}"}
             | {"iterations": f"{r.iterations:,}", "networks × seeds": f"{r.networks} × {len(r.seeds)}"}
             | {"seconds": "–" if math.isnan(r.seconds) else f"{r.seconds:,.0f}"}
             | {"source": f"results/best, {r.protocol}, {r.epochs} epochs; the kept set {_kept(r):.1f}{beside}"})
        )  # fmt: skip
    ordered = [row for _, row in sorted(rows, key=lambda pair: (pair[1]["ipc"], -pair[0]))]
    return pd.DataFrame(ordered, columns=COLUMNS).astype(object).fillna("–").set_index("ipc")


def record_sentence(root: Path, dataset: str) -> str:
    """What the table holds of ours, in one sentence; says so when it is nothing yet."""
    ours = best_sets(root, dataset)
    if ours.empty:
        return f"No best set of {dataset} is kept in results/best yet, so the table shows the published numbers alone."
    listed = ", ".join(
        f"ipc {r.ipc}: {percent(r.accuracy, r.std)} % (the kept one {_kept(r):.1f} %)" for r in ours.itertuples()
    )
    return f'Sets made as the best this project keeps (`dreamlib.load("{dataset}", ipc=…)`) reach {listed}.'


def _kept(best: Any) -> float:
    """The mean accuracy (%) of the set that is kept, the first seed's."""
    return 100 * statistics.fmean(best.accuracies[: best.networks])


def readme_text(root: Path) -> str:
    """README.md with the table of the best sets, Fashion-MNIST's, between its markers."""
    table = record_table(root, "fashion_mnist").reset_index()
    text = (root / "README.md").read_text()
    return between(text, BEGIN, END, lambda: markdown(table.columns, table.values))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status, with one clear line on standard error where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dreamlib.stage_best", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", help="an ipc, to gather its sets; or 'readme', to write the table")
    what = parser.parse_args(arguments).what
    if what == "readme":
        root = find_root()
        return exit_status(lambda: write_atomically(root / "README.md", readme_text(root).encode()))
    if not what.isdigit():
        parser.error(f"'{what}' is neither an ipc nor 'readme'")
    return exit_status(lambda: gather(Project.open(study=f"best_ipc{what}"), int(what)))


if __name__ == "__main__":
    sys.exit(main())
