"""Distilled sets from and for other projects: ``python -m dreamlib.sets import FILE OUT``, ``… export FILE OUT``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from dreamlib.data import load_split
from dreamlib.data.whitening import ZCA
from dreamlib.synthetic.export import WRITERS, export_set
from dreamlib.synthetic.foreign import import_set
from dreamlib.synthetic.foreign_files import READERS
from dreamlib.synthetic.synthetic_set import SyntheticSet


def main(arguments: list[str] | None = None) -> int:
    """Import or export a set and print what was written; return the exit status, 1 after an error of one line."""
    options = vars(_parser().parse_args(arguments))
    command = {"import": _import, "export": _export}[options.pop("command")]
    try:
        command(Path(options.pop("file")), Path(options.pop("out")), options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _import(file: Path, out: Path, options: dict[str, Any]) -> None:
    """Write each set of a foreign file: to ``out``, or numbered next to it if there are several."""
    sets = import_set(file, **{name: value for name, value in options.items() if value is not None})
    numbered = isinstance(sets, list)
    for index, synthetic in enumerate(sets if numbered else [sets]):
        path = out.with_name(f"{out.stem}-{index}{out.suffix}") if numbered else out
        synthetic.save(path)
        kind = "class numbers" if synthetic.soft_labels is None else "soft labels"
        print(f"{path}: {len(synthetic.canvases)} images of {synthetic.num_classes} classes, {kind}")


def _export(file: Path, out: Path, options: dict[str, Any]) -> None:
    """Write a set of this library in another layout; print how to read it back and what is lost."""
    synthetic, zca = SyntheticSet.open(file), None
    if options["format"] == "png" and synthetic.whitening != "none":
        train = load_split(synthetic.info["dataset"], "train", options["data_dir"], 0, 0)
        zca = ZCA.fit(train.images, synthetic.zca_epsilon)
    exported = export_set(synthetic, out, options["format"], zca=zca)
    for path in exported.files[:3]:
        print(path)
    if len(exported.files) > 3:
        print(f"... and {len(exported.files) - 3} more")
    for phrase in exported.lost:
        print(f"not kept: {phrase}")
    read_back = " ".join(f"--{name.replace('_', '-')} {_text(value)}" for name, value in exported.read_back.items())
    print(f"read it back: python -m dreamlib.sets import {out} SET.safetensors {read_back}")


def _text(value: Any) -> str:
    """Return an argument as typed on the command line: (mean, std) as numbers with commas and a slash between."""
    return "/".join(",".join(map(str, part)) for part in value) if isinstance(value, tuple) else str(value)


def _normalised(text: str) -> str | tuple[tuple[float, ...], ...]:
    """Return a name, or (mean, std) of ``0.5,0.5,0.5/0.2,0.2,0.2``."""
    return tuple(tuple(map(float, part.split(","))) for part in text.split("/")) if "/" in text else text


def _step_size(text: str) -> float | str:
    return text if text == "none" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dreamlib.sets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    reader = commands.add_parser("import", help="convert another project's file to a set of ours; see docs/sets.md")
    reader.add_argument("file", help="file or folder of the other project")
    reader.add_argument("out", help="set to write, *.safetensors")
    reader.add_argument("--format", choices=sorted(READERS), help="layout; detected if evident")
    reader.add_argument("--data", help="name of the data set")
    reader.add_argument(
        "--normalised",
        type=_normalised,
        help="literature, per_pixel, zca, none, or MEAN/STD as 0.5,0.5,0.5/0.2,0.2,0.2",
    )
    reader.add_argument("--zca-epsilon", type=float, help="epsilon of the whitening, for --normalised zca")
    reader.add_argument("--num-classes", type=int, help="number of classes, without --data")
    reader.add_argument("--labels", choices=["classes", "probabilities", "logits"], help="what labels (N, K) are")
    reader.add_argument("--factor", type=int, help="F, if a stored image holds F × F training images")
    reader.add_argument(
        "--decode", choices=["single", "bound"], help="how these are cut; see dreamlib.synthetic.decode"
    )
    reader.add_argument("--step-size", type=_step_size, help="step size learned with the images, or none")
    reader.add_argument("--experiment", type=int, help="number of one of the file's sets (default: all)")
    writer = commands.add_parser("export", help="write a set of this library for another project")
    writer.add_argument("file", help="set of this library")
    writer.add_argument("out", help="file (dc, npz) or new folder (mtt, png)")
    writer.add_argument("--format", choices=sorted(WRITERS), required=True)
    writer.add_argument("--data-dir", default="data", help="folder of all data sets, for pictures of a whitened set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
