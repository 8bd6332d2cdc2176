"""The README's table of speeds, written from benchmarks/results.json by ``python -m benchmarks``."""

from pathlib import Path
from typing import Any

from dreamlib.files import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"


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
    """The README's text with its table of speeds replaced; raises ValueError when the markers are missing."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"README.md must hold '{BEGIN}' and '{END}' once each, around the table of speeds")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{markdown(result)}{END}{rest.split(END)[1]}"


def write() -> None:
    """Bring README.md up to date with results.json."""
    path = ROOT / "README.md"
    path.write_text(readme_text(path.read_text(), read_json(RESULTS)))


if __name__ == "__main__":
    write()
