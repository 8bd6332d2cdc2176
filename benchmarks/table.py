"""The README's table of speeds, written from benchmarks/results.json by ``python -m benchmarks``."""

from pathlib import Path
from typing import Any

from benchmarks import cost
from dreamlib.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"
COST_BEGIN, COST_END = "<!-- costs: modelled from the benchmarks by `make bench` -->", "<!-- end of costs -->"


def markdown(result: dict[str, Any]) -> str:
    """Machine, table and memory in Markdown."""
    machine, peak = result["machine"], result["peak_flops"]["bfloat16"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['precision']}"
        f"{', compiled' if machine['compiled'] else ''}; medians of {result['repeats']}, interleaved:",
        "",
        "| work | plain loop (s) | library (s) | ratio | range | floor (s) |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        spread = "computed" if row.get("computed") else "{:.2f} to {:.2f}".format(*row["ratio_range"])
        floor = f"{row['floor_s']:.3f}" if "floor_s" in row else ""
        times = f"{row['reference_s']:.3f} | {row['fast_s']:.3f} | {row['ratio']:.1f}"
        lines.append(f"| {row['work']} | {times} | {spread} | {floor} |")
    memory = [f"{size / 2**20:,.0f} MiB at ipc {ipc}" for ipc, size in result["memory_above_torch_bytes"].items()]
    lines += [
        "",
        f"The floor is the operations over the {peak / 1e12:.2f} · 10¹² a second that a matrix product reaches here. "
        f"Peak memory of DREAM's iterations above the import of torch: {', '.join(memory)}.",
    ]
    return "\n".join(lines) + "\n"


def readme_text(readme: str, result: dict[str, Any]) -> str:
    """The README's text with its tables of speeds and costs replaced; raises ValueError when markers are missing."""
    parts = ((BEGIN, END, markdown(result), "speeds"), (COST_BEGIN, COST_END, cost.markdown(result), "costs"))
    for begin, end, text, what in parts:
        if readme.count(begin) != 1 or readme.count(end) != 1:
            raise ValueError(f"README.md must hold '{begin}' and '{end}' once each, around the table of {what}")
        before, rest = readme.split(begin)
        readme = f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"
    return readme


def write() -> None:
    """Bring README.md up to date with results.json."""
    path = ROOT / "README.md"
    path.write_text(readme_text(path.read_text(), read_json(RESULTS)))


if __name__ == "__main__":
    write()
