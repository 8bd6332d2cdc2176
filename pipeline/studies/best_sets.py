"""Gather the project's best sets from the studies that made them, and compare them with published accuracies.

``python -m pipeline.studies.best_sets IPC`` copies the set of one ipc from the study best_ipc<IPC> to results/best, and
evaluates it under IDC's protocol.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from dreamlib._engine.files import write_json
from dreamlib.evaluation import apply_view, evaluate
from dreamlib.synthetic.synthetic_set import BEST_FOLDER, SyntheticSet
from pipeline.failures import exit_status
from pipeline.project import Project, Setting
from pipeline.report import figures
from pipeline.report.results import best_results, published_results, read_results
from pipeline.report.statistics import spread
from pipeline.report.tables import markdown, percent
from pipeline.stages.evaluation import partial_results, seen_test_images

ACCURACY = "test accuracy (%)"
COLUMNS = ["method", ACCURACY, "evaluation", "factor", "stored floats", "networks × seeds", "source"]
OWN_EVALUATION = "own evaluation"  # marks a row that is not comparable to published ones


def gather(project: Project, ipc: int) -> dict[str, Any]:
    """Store the first seed's set of a study of one method, and evaluate it under IDC's protocol; return the numbers.

    Write results/best/<dataset>-ipc<ipc>.safetensors, .png (its contact sheet) and .json. The first seed's set
    represents the method, whatever its accuracy. The study's accuracies are those of all its seeds. The accuracies of
    the stored set under IDC's protocol, which are comparable to published ones, are stored under 'idc'. An interrupted
    evaluation resumes at the first unfinished network. Raise ValueError for a study of several methods.
    """
    p = project.params
    if len(p.methods) != 1:
        raise ValueError(
            f"study {project.study} lists methods {p.methods}; a best set comes from a study of one method: list only "
            "one"
        )
    rows = read_results(project)
    rows = rows[(rows.ipc == ipc) & (rows.split == "test") & rows.matched & (rows.view == "protocol")]
    protocol, first = p.evaluation(p.methods[0], ipc), rows.to_dict("records")[0]
    setting = Setting(p.methods[0], ipc, p.seeds[0])
    path = project.root / BEST_FOLDER / f"{p.dataset}-ipc{ipc}.safetensors"
    synthetic = SyntheticSet.open(project.file("sets", setting, ".safetensors"))
    by_idc = _by_idc(project, setting, synthetic)
    synthetic.save(path)
    pictures = project.pictures(synthetic)
    figures.write_contact_sheet(pictures, synthetic.num_classes, path.with_suffix(".png"), scale=2 if ipc > 1 else 4)
    shared = ("protocol", "epochs", "method", "factor", "stored_floats", "label_kind")
    accuracies = rows.accuracy.tolist()
    numbers = (
        {key: first[key] for key in shared}
        | _statistics(accuracies)
        | {
            "networks": len(accuracies) // len(p.seeds),
            "seeds": p.seeds,
            "decode": synthetic.rule,
            "study": project.study,
            "augmentation_mode": protocol.augmentation_mode,
            "iterations": first["iteration"],
            "idc": by_idc,
        }
    )
    write_json(path.with_suffix(".json"), numbers)
    return numbers


def _by_idc(project: Project, setting: Setting, synthetic: SyntheticSet) -> dict[str, Any]:
    """Return a set's accuracies under IDC's protocol, on as many networks as the study evaluates."""
    p, test = project.params, seen_test_images(project, synthetic)
    _, protocol = apply_view("idc", synthetic, p.evaluation(setting.method, setting.ipc))
    done = evaluate(
        synthetic, *test, protocol, (p.network.name, p.network.options), project.compute, seed=setting.seed,
        split="test", label=f"best set of ipc {setting.ipc}, IDC's protocol",
        partial=partial_results(project, f"best-ipc{setting.ipc}", synthetic, protocol, p.network, setting.seed),
    )  # fmt: skip
    measured = {"networks": len(done.accuracies), "seeds": [setting.seed], "compute": project.compute.describe()}
    return _statistics(list(done.accuracies)) | measured


def _statistics(accuracies: list[float]) -> dict[str, Any]:
    """Return the mean, standard deviation and list of accuracies."""
    std = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"accuracy": statistics.fmean(accuracies), "std": std, "accuracies": accuracies}


def comparison_table(root: Path, dataset: str) -> pd.DataFrame:
    """Return our best sets and the published accuracies of a data set, for every ipc, best first.

    All accuracies are under IDC's protocol or the papers' own, with the last layer as trained, hard labels and equal
    storage. Our sets under their own evaluation follow at the end of each ipc, marked. Published accuracies known from
    other papers only are omitted: see ``unverified_table``.
    """
    published, best = published_results(root, dataset), best_results(root, dataset)
    published = published[published.verified]
    compared = published.assign(evaluation="as published", own=False, **{ACCURACY: _published_percent(published)})
    best_rows = [_best_row(part) for _, part in best.groupby(["ipc", "view"])]
    table = pd.concat(
        [compared, pd.DataFrame(best_rows, columns=["ipc", "own", "accuracy", *COLUMNS])], ignore_index=True
    )
    table = table.sort_values(["ipc", "own", "accuracy"], ascending=[True, True, False], kind="stable")
    return table.set_index("ipc")[COLUMNS].astype(object).fillna("–")


def _best_row(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the row of the table for a best set under one view."""
    first, (accuracy, std) = rows.iloc[0], spread(rows, "ipc").iloc[0]
    under_own_protocol, per_image = first["view"] == "protocol", first.augmentation_mode == "idc_per_image"
    mark = f"{OWN_EVALUATION}: " if under_own_protocol else ""
    drawn = ", augmentation drawn per image" if under_own_protocol and per_image else ""
    seeds = rows.seed.nunique()
    return {
        "ipc": first.ipc,
        "own": under_own_protocol,
        "accuracy": accuracy,
        "method": f"here: {first.method}" + ("" if first.label_kind == "hard" else ", soft labels"),
        ACCURACY: percent(accuracy, std),
        "evaluation": f"{mark}{first.protocol}, {first.epochs} epochs{drawn}",
        "factor": f"{first.factor} (frequencies)" if first.decode == "dct" else first.factor,
        "stored floats": f"{first.stored_floats:,}",
        "networks × seeds": f"{len(rows) // seeds} × {seeds}",
        "source": "results/best",
    }


def unverified_table(root: Path, dataset: str) -> pd.DataFrame:
    """Return the published accuracies (%) that we could not check against their source, methods (rows) × ipc."""
    published = published_results(root, dataset)
    chosen = published[~published.verified]
    chosen = chosen.assign(accuracy=_published_percent(chosen))
    return chosen.pivot(index=["method", "source"], columns="ipc", values="accuracy").fillna("–")


def _published_percent(rows: pd.DataFrame) -> list[str]:
    return [
        f"{100 * row.accuracy:.1f}" if math.isnan(row.std) else percent(row.accuracy, row.std)
        for row in rows.itertuples()
    ]


def comparison_sentence(root: Path, dataset: str) -> str:
    """Summarise our rows of the table in a sentence, even if there are none."""
    best = best_results(root, dataset)
    if best.empty:
        return f"results/best has no set of {dataset} yet, so the table shows only published numbers."
    by_idc = spread(best[best.view == "idc"], "ipc")
    listed = ", ".join(f"ipc {row.Index}: {percent(row.accuracy, row.std, ' %')}" for row in by_idc.itertuples())
    return (
        f"Under IDC's protocol, with the last layer as trained, this project's best sets (`dreamlib.load("
        f'"{dataset}", ipc=…)`) reach {listed}. Rows marked "{OWN_EVALUATION}" follow another protocol and are not '
        "comparable to published ones."
    )


def best_sets_text(root: Path) -> str:
    """Return the tables of docs/results.md: our best sets and published ones, and accuracies we could not verify."""
    table = comparison_table(root, "fashion_mnist").reset_index()
    unverified = unverified_table(root, "fashion_mnist").reset_index()
    return (
        markdown(table.columns, table.values)
        + "\nNot verified by us (known from other papers only):\n\n"
        + markdown(map(str, unverified.columns), unverified.values)
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status, after one line on standard error if something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.studies.best_sets", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("ipc", type=int, help="gather the sets of this ipc")
    ipc = parser.parse_args(arguments).ipc
    return exit_status(lambda: gather(Project.open(study=f"best_ipc{ipc}"), ipc))


if __name__ == "__main__":
    sys.exit(main())
