"""The tables of docs/speed.md, from the measurements in benchmarks/."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks import cost
from dreamlib._engine.files import read_json
from pipeline.report.tables import markdown, percent

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
FLOAT32_RESULTS = ROOT / "benchmarks" / "results-float32.json"  # of a CPU that has no bfloat16 instructions
CUDA_RESULTS = ROOT / "benchmarks" / "results-cuda.json"
ACCURACY = ROOT / "benchmarks" / "accuracy.json"
FLOORS = ("operations' floor (s)", "bytes' floor (s)", "ratio at the floor")
PAPER = ROOT / "benchmarks" / "paper.json"
REACH = ROOT / "benchmarks" / "reach.json"
REACH_GOAL = 0.80  # the accuracy that the table asks after, beside the published one
PAPER_ITERATIONS = 200_000  # inner iterations of the released runs


def results_file(device: str, precision: str) -> Path:
    """Where the times of a kind of device belong, by its type and the format that the library takes there.

    >>> results_file("cpu", "float32").name
    'results-float32.json'
    """
    if device == "cuda":
        return CUDA_RESULTS
    return RESULTS if precision == "bfloat16" else FLOAT32_RESULTS


def clustered_images(pool: int) -> str:
    """Which images of a class enter a clustering."""
    return f"pool {pool}" if pool else "all"


def spread(row: dict[str, Any]) -> str:
    """The range of a row's ratios, or why it has none."""
    if row.get("computed"):
        return "computed"
    return "measured once" if row.get("once") else "{:.2f} to {:.2f}".format(*row["ratio_range"])


def library_peak(result: dict[str, Any]) -> float:
    """Operations a second of a matrix product in the library's format."""
    return result["peak_flops"][result["machine"]["precision"]]


def most_operations(result: dict[str, Any]) -> float:
    """Operations a second in the library's format of whatever did best, a product or a convolution."""
    return max(library_peak(result), *result["convolution_flops"].values())


def floors(row: dict[str, Any], result: dict[str, Any]) -> tuple[float, float]:
    """Seconds that a row's operations take at the best rate seen, and its bytes at a copy's."""
    return row["operations"] / most_operations(result), row["bytes"] / result["peak_bytes_per_s"]


def ratio_at_the_floor(row: dict[str, Any], result: dict[str, Any]) -> float:
    """How many times faster than the plain loop its operations and bytes allow."""
    return row["reference_s"] / max(floors(row, result))


def speeds(result: dict[str, Any] | None) -> str:
    """Return machine, table and memory of a CPU in Markdown; None means that it was not measured yet."""
    if result is None:
        return "Not measured yet: `make bench`, on a CPU without bfloat16 instructions, writes this.\n"
    machine, rows = result["machine"], []
    for row in result["rows"]:
        bound = ("", "", "")
        if "operations" in row:
            bound = (*(f"{floor:.3f}" for floor in floors(row, result)), f"{ratio_at_the_floor(row, result):.1f}")
        times = (f"{row['reference_s']:.3f}", f"{row['fast_s']:.3f}", f"{row['ratio']:.1f}")
        rows.append((row["work"], *times, spread(row), *bound))
    memory = [f"{size / 2**20:,.0f} MiB at ipc {ipc}" for ipc, size in result["memory_above_torch_bytes"].items()]
    shares = [f"{row['work']} {row['clustering_share']:.1%}" for row in result["rows"] if "clustering_share" in row]
    forward, to_input, to_weight = (speed / 1e12 for speed in result["convolution_flops"].values())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['precision']}"
        f"{', compiled' if machine['compiled'] else ''}, {result['parallel_classes']} classes matched at a time; "
        f"medians of {result['repeats']} interleaved repeats:\n\n"
        + markdown(("work", "plain loop (s)", "library (s)", "ratio", "range", *FLOORS), rows)
        + "\nThe operations' floor divides a row's operations by the highest rate measured here, of a matrix product "
        f"or a convolution: {most_operations(result) / 1e12:.3g} · 10¹² a second. The bytes' floor divides the bytes "
        "that convolutions and products must move, each operand and result once, by the rate of a copy: "
        f"{result['peak_bytes_per_s'] / 1e9:.0f} · 10⁹ a second. No library that does the same operations in this "
        "format can exceed the last column. Most operations are convolutions. The largest of these reaches "
        f"{forward:.3g} · 10¹² operations a second forward, {to_input:.3g} · 10¹² in its gradient with respect to the "
        f"images and {to_weight:.3g} · 10¹² with respect to the weights.\n\n"
        f"Peak memory of DREAM's iterations above that of importing torch: {', '.join(memory)}. Share of clustering in "
        f"the library's time: {', '.join(shares)}.\n"
    )


def gpu_speeds(result: dict[str, Any] | None) -> str:
    """Return the same for a GPU, with the share of the speed of a matrix product; None means not measured yet."""
    if result is None:
        return "Not measured yet: `make bench DEVICE=cuda`, on a machine with a CUDA GPU, writes this.\n"
    machine, peak = result["machine"], library_peak(result)
    rows = []
    for row in result["rows"]:
        times = (f"{1000 * row['reference_s']:.1f}", f"{1000 * row['fast_s']:.1f}", f"{row['ratio']:.1f}", spread(row))
        rows.append((row["work"], *times, f"{row['operations'] / row['fast_s'] / peak:.1%}"))
    runs = []
    for run in result["runs"]:
        took = run["iteration_s"]
        measured = (f"{1000 * took:.1f}", f"{run['reference_s'] / took:.1f}", f"{run['operations'] / took / peak:.1%}")
        runs.append((run["ipc"], clustered_images(run["pool"]), *measured, f"{took * PAPER_ITERATIONS / 3600:.1f}"))
    return (
        f"{machine['device']}, {machine['cpu']}, torch {machine['torch']}, {machine['precision']}; medians of "
        f"{result['repeats']} interleaved repeats. A matrix product reaches {peak / 1e12:.0f} · 10¹² operations a "
        f"second. At most {result['device_memory_bytes'] / 2**30:.1f} GiB of the GPU's memory were reserved.\n\n"
        + markdown(("work", "plain loop (ms)", "library (ms)", "ratio", "range", "share of peak"), rows)
        + "\nRuns of DREAM as in the pipeline, where a step is prepared while the GPU still computes the previous one. "
        f"Each row is one run: the mean over its {result['runs'][0]['iterations']} iterations, the ratio to the plain "
        f"loop's parts above, and the hours that the paper's {PAPER_ITERATIONS:,} iterations would take at that rate:"
        "\n\n" + markdown(("ipc", "images clustered", "iteration (ms)", "ratio", "share of peak", "hours"), runs)
    )


def accuracy_text(result: dict[str, Any]) -> str:
    """Return what speed costs in accuracy, in Markdown: differences in points, paired by seed or network."""

    def cells(row: dict[str, Any]) -> tuple[str, str]:
        points = [f"{100 * row[key]:.1f}" for key in ("std", "spread")]
        return f"{100 * row['difference']:+.1f} ± {points[0]}", points[1]

    rows = [(r["ipc"], f"{r['of']} − {r['from']}", *cells(r)) for r in result["differences"]]
    rows += [(r["ipc"], "evaluation loop, library − plain", *cells(r)) for r in result["evaluation_loops"]]
    seeds = {r["seeds"] for r in result["differences"]}
    networks = {len(r["plain"]) for r in result["evaluation_loops"]}
    options = result["options"]
    unseen = max(2 * r["std"] / math.sqrt(r["seeds"]) for r in result["differences"])
    return (
        f"DREAM as in `params.yaml`, {options['iterations']} iterations, validation accuracy. Differences are means ± "
        f"standard deviations over {_counted(seeds)} seeds with {options['networks']} networks each; those of the "
        f"evaluation loop are over {_counted(networks)} networks on one set.\n\n"
        + markdown(("ipc", "difference of", "points", "deviation of the second (points)"), rows)
        + f"\nWith so few seeds, differences up to {100 * unseen:.1f} points (twice the standard error) are not seen.\n"
    )


def _counted(numbers: set[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


def canvases_file(ipc: int) -> Path:
    """The canvases of a run of the paper's length, by iteration, with a note of how they came about."""
    return ROOT / "benchmarks" / f"paper-ipc{ipc}.safetensors"


def note_of(path: Path) -> dict[str, Any] | None:
    """What a run left beside its canvases; None where there is no such file."""
    if not path.is_file():
        return None
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["run"])


def paper_run(ipc: int) -> dict[str, Any] | None:
    """The note in ``canvases_file``; None for a run that was not begun."""
    return note_of(canvases_file(ipc))


def paper_text(runs: list[dict[str, Any]], evaluations: dict[str, Any]) -> str:
    """Return how far the runs of the paper's length have come, and how good their canvases were, in Markdown."""
    paragraphs = [] if runs else ["No run towards the paper's length has been made under these settings yet.\n"]
    for run in runs:
        evaluation = evaluations.get(str(run["ipc"]))
        done = "all" if run["iterations"] == run["total"] else f"{run['iterations']:,} of"
        machines = [piece["machine"] for piece in run["pieces"]]
        where = ", then ".join(f"{m['device']}, {m['precision']}, torch {m['torch']}" for m in machines)
        text = (
            f"DREAM at ipc {run['ipc']} under the `paper` budget, with at most {cost.START_STEPS} steps of k-means for "
            f"the start; images clustered on the way: {clustered_images(run['pool'])}. Done so far: {done} "
            f"{run['total']:,} iterations, on {where}"
        )
        rows = []
        for iteration, took in sorted(run["seconds"].items(), key=lambda item: int(item[0])):
            accuracy, point = "not evaluated yet", evaluation["points"].get(iteration) if evaluation else None
            if point:
                accuracy = percent(statistics.fmean(point["accuracies"]), statistics.stdev(point["accuracies"]))
            rows.append((f"{int(iteration):,}", f"{took / 60:.1f}", accuracy))
        if evaluation:
            networks = len(next(iter(evaluation["points"].values()))["accuracies"])
            text += (
                f". Test accuracy of {networks} networks after {evaluation['epochs']:,} epochs of protocol "
                f"{evaluation['protocol']}, trained on {evaluation['device']}: mean ± standard deviation over "
                "networks, one seed"
            )
            if evaluation["published"]:
                rows.append((f"{run['total']:,} (published)", "", "{} ± {}".format(*evaluation["published"])))
        paragraphs.append(f"{text}:\n\n" + markdown(("iterations", "minutes", "test accuracy (%)"), rows))
    return "\n".join(paragraphs)


def reach_text(results: dict[str, Any]) -> str:
    """Return how good sets were after how long, in Markdown; a table for each kind of machine."""
    if not results:
        return "Not measured yet: `make bench-reach` writes this.\n"
    return "\n".join(_reached(result) for _kind, result in sorted(results.items()))


def _reached(result: dict[str, Any]) -> str:
    machine, rows = result["machine"], []
    goals = {f"{100 * REACH_GOAL:.0f} %": REACH_GOAL}
    if result["published"]:
        goals[f"DREAM's published {result['published'][0]} %"] = result["published"][0] / 100
    reached: dict[str, list[str]] = {goal: [] for goal in goals}
    for method, run in result["runs"].items():
        means = {int(i): statistics.fmean(point["accuracies"]) for i, point in run["points"].items()}
        minutes = {int(i): point["seconds"] / 60 for i, point in run["points"].items()}
        for iteration in sorted(means):
            spread = statistics.stdev(run["points"][str(iteration)]["accuracies"])
            done = f"{iteration:,} of {run['total']:,}"
            rows.append((method, done, f"{minutes[iteration]:.1f}", percent(means[iteration], spread)))
        for goal, accuracy in goals.items():
            passed = [minutes[i] for i in sorted(means) if means[i] >= accuracy]
            reached[goal].append(f"by {method} in {passed[0]:.1f} minutes" if passed else f"not by {method}")
    networks = {len(point["accuracies"]) for run in result["runs"].values() for point in run["points"].values()}
    factors = {run["factor"] for run in result["runs"].values()}
    where = machine["cpu"] if machine["device"].startswith("cpu") else f"{machine['device']}, {machine['cpu']}"
    # sorted: "not …" comes last
    goals_text = "; ".join(f"{goal} is reached {', '.join(sorted(texts))}" for goal, texts in reached.items())
    return (
        f"{where}, {machine['threads']} threads, torch {machine['torch']}, {machine['precision']}"
        f"{', compiled' if machine['compiled'] else ''}; ipc {result['ipc']}, factor "
        f"{_counted(factors)}; {_counted(networks)} networks, {result['epochs']:,} epochs of protocol "
        f"{result['protocol']}; mean ± standard deviation over networks, one seed:\n\n"
        + markdown(("method", "iterations", "minutes", "test accuracy (%)"), rows)
        + f"\nAmong the iterations evaluated, {goals_text}.\n"
    )


def if_measured(path: Path) -> dict[str, Any] | None:
    """What a file of measurements holds; None where there is none."""
    return read_json(path) if path.is_file() else None


def paper_evaluations() -> dict[str, Any]:
    """What is known of the canvases of runs of the paper's length, by ipc."""
    return if_measured(PAPER) or {}


def paper_result() -> str:
    """``paper_text`` of what is there."""
    files = (ROOT / "benchmarks").glob("paper-ipc*.safetensors")
    ipcs = sorted(int(file.stem.removeprefix("paper-ipc")) for file in files)
    return paper_text([paper_run(ipc) for ipc in ipcs], paper_evaluations())


# The blocks of docs/speed.md, by name.
BLOCKS: dict[str, Callable[[], str]] = {
    "bfloat16": lambda: speeds(if_measured(RESULTS)),
    "float32": lambda: speeds(if_measured(FLOAT32_RESULTS)),
    "GPU": lambda: gpu_speeds(if_measured(CUDA_RESULTS)),
    "paper's length": paper_result,
    "reach": lambda: reach_text(if_measured(REACH) or {}),
    "accuracy": lambda: accuracy_text(read_json(ACCURACY)),
    "costs": lambda: cost.costs(read_json(RESULTS)),
}
