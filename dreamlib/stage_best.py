"""The record table: the project's best sets beside what others published, with what each number rests on."""

from pathlib import Path

import pandas as pd

from dreamlib.files import read_json
from dreamlib.synthetic import BEST

COLUMNS = ["ipc", "method", "test accuracy (%)", "factor", "iterations", "networks × seeds", "seconds", "source"]


def best_sets(root: Path, dataset: str) -> pd.DataFrame:
    """One row per results/best/<dataset>-ipc<ipc>.json, in order of ipc; empty where there is none."""
    rows = []
    for path in (root / BEST).glob(f"{dataset}-ipc*.json"):
        rows.append(read_json(path) | {"ipc": int(path.stem.rpartition("-ipc")[2])})
    return pd.DataFrame(rows).sort_values("ipc", ignore_index=True) if rows else pd.DataFrame()


def record_table(root: Path, dataset: str) -> pd.DataFrame:
    """Ours and the published accuracies for every ipc of the data set, best first within an ipc.

    Ours carry iterations, networks, protocol and seconds; of the published, what notebooks/published.csv has. All of
    it hard labels and equal storage unless a row says otherwise.
    """
    published = pd.read_csv(root / "notebooks" / "published.csv")
    published = published[published.dataset == dataset]
    rows = [
        (r.accuracy, {"ipc": r.ipc, "method": r.method, "test accuracy (%)": f"{r.accuracy:.1f} ± {r.std:.1f}"}
         | {"factor": r.factor, "source": r.source})
        for r in published.itertuples()
    ]  # fmt: skip
    for r in best_sets(root, dataset).itertuples():
        soft = "" if r.label_kind == "hard" else ", soft labels"
        rows.append(
            (100 * r.accuracy, {"ipc": r.ipc, "method": f"here: {r.method}{soft}"}
             | {"test accuracy (%)": f"{100 * r.accuracy:.1f} ± {100 * r.std:.1f}", "factor": r.factor}
             | {"iterations": f"{r.iterations:,}", "networks × seeds": f"{r.networks} × {_count(r.seeds)}"}
             | {"seconds": f"{r.seconds:,.0f}", "source": f"results/best, {r.protocol}, {r.epochs} epochs"})
        )  # fmt: skip
    ordered = [row for _, row in sorted(rows, key=lambda pair: (pair[1]["ipc"], -pair[0]))]
    return pd.DataFrame(ordered, columns=COLUMNS).astype(object).fillna("–").set_index("ipc")


def _count(seeds: int | list[int]) -> int:
    return len(seeds) if isinstance(seeds, list) else seeds


def record_sentence(root: Path, dataset: str) -> str:
    """What the table holds of ours, in one sentence; says so when it is nothing yet."""
    ours = best_sets(root, dataset)
    if ours.empty:
        return f"No best set of {dataset} is kept in results/best yet, so the table shows the published numbers alone."
    listed = ", ".join(f"ipc {r.ipc}: {100 * r.accuracy:.1f} ± {100 * r.std:.1f} %" for r in ours.itertuples())
    return f'The best sets this project keeps (`dreamlib.load("{dataset}", ipc=…)`) reach {listed}.'
