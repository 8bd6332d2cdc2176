"""The README's table of speeds, written from benchmarks/results.json by ``python -m benchmarks``."""

from pathlib import Path
from typing import Any

from benchmarks import cost
from dreamlib.files import read_json
from dreamlib.tables import between, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"
COST_BEGIN, COST_END = "<!-- costs: modelled from the benchmarks by `make bench` -->", "<!-- end of costs -->"


def speeds(result: dict[str, Any]) -> str:
    """Machine, table and memory in Markdown."""
    machine, peak = result["machine"], result["peak_flops"]["bfloat16"]
    rows = []
    for row in result["rows"]:
        spread = "computed" if row.get("computed") else "{:.2f} to {:.2f}".format(*row["ratio_range"])
        floor = f"{row['floor_s']:.3f}" if "floor_s" in row else ""
        rows.append(
            (row["work"], f"{row['reference_s']:.3f}", f"{row['fast_s']:.3f}", f"{row['ratio']:.1f}", spread, floor)
        )
    memory = [f"{size / 2**20:,.0f} MiB at ipc {ipc}" for ipc, size in result["memory_above_torch_bytes"].items()]
    return (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['precision']}"
        f"{', compiled' if machine['compiled'] else ''}; medians of {result['repeats']}, interleaved:\n\n"
        + markdown(("work", "plain loop (s)", "library (s)", "ratio", "range", "floor (s)"), rows)
        + f"\nThe floor is the operations over the {peak / 1e12:.2f} · 10¹² a second that a matrix product reaches "
        f"here. Peak memory of DREAM's iterations above the import of torch: {', '.join(memory)}.\n"
    )


def readme_text(readme: str, result: dict[str, Any]) -> str:
    """The README's text with its tables of speeds and costs replaced; raises ValueError when markers are missing."""
    readme = between(readme, BEGIN, END, lambda: speeds(result))
    return between(readme, COST_BEGIN, COST_END, lambda: cost.costs(result))


def write() -> None:
    """Bring README.md up to date with results.json."""
    path = ROOT / "README.md"
    path.write_text(readme_text(path.read_text(), read_json(RESULTS)))


if __name__ == "__main__":
    write()
