"""Fetch and verify data sets, after checking all parameters.

``python -m pipeline.fetch_data [NAME ...] [--data-dir data] [--from FOLDER]``
"""

import argparse
import logging
import os
import sys
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dreamlib._engine.files import write_atomically
from dreamlib.data import DATASETS, Dataset, create
from dreamlib.data.fetch import md5_of
from dreamlib.data.folder import Folder
from pipeline.failures import one_line
from pipeline.params import Params, find_root, read_params, read_studies
from pipeline.params.check import check_names
from pipeline.params.images import check_images
from pipeline.params.read import STUDIES
from pipeline.report.claims import CLAIMS_FILE, read_claim_list

log = logging.getLogger(__name__)

DEFAULT_NAMES = ("fashion_mnist", "digits")  # data sets to fetch outside a project
MAX_LISTED = 10  # files printed per data set; a user's folder may have one per image


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named data sets, print each file with its MD5, and return the exit status: 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch_data", description="Fetch and verify data sets.")
    known = ", ".join(DATASETS.names())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known} (default: the one params.yaml names)")
    parser.add_argument("--data-dir", help="folder of all data sets (default: data.directory of params.yaml, or data)")
    parser.add_argument("--from", dest="source", metavar="FOLDER", help="local folder to take the named data set from")
    chosen = parser.parse_args(arguments)
    if chosen.source and len(chosen.names) != 1:
        parser.error("--from needs the NAME of one data set")
    failed = False
    try:
        params = _params()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = chosen.data_dir or (params.data.directory if params else "data")
    for name, options in _wanted(chosen.names, params):
        try:
            dataset = create(name, options)
            paths = dataset.fetch(folder, chosen.source)
            for path in paths[:MAX_LISTED]:
                print(f"{md5_of(path)}  {path}")
            if len(paths) > MAX_LISTED:
                print(f"... and {len(paths) - MAX_LISTED} more")
            if params and name == params.dataset:
                _prepare(params, dataset, folder)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            # Continue with the others if one fails.
            print(f"{name}: {one_line(type(error).__name__, str(error), Path.cwd())}", file=sys.stderr)
            failed = True
    return int(failed)


def _prepare(params: Params, dataset: Dataset, folder: str) -> None:
    """Make DVC track the user's own images; reject parameters that need more images than exist (see check_images)."""
    if isinstance(dataset, Folder):
        watch_images(dataset.folder().resolve(), Path(folder).resolve(), find_root())
    train = dataset.load("train", folder)
    check_images(params, dataset.info_in(folder), train.labels.bincount(minlength=train.num_classes))


def watch_images(images: Path, data: Path, root: Path) -> None:
    """Write ``data``/dvc.yaml: a stage that depends on the images and runs this command, which lists them in ``data``.

    Every stage depends on that list, so that DVC checks the sizes and times of all images once, not once per stage.
    """
    listing = data / Folder.name / "images.md5"
    if images in listing.parents:  # already inside the data folder
        return
    if root not in data.parents:
        log.warning("%s is outside the project: run `make data` after every change of the images", data)
        return
    stage = {
        "desc": "List the images anew after one has changed. Written by `make data`.",
        "wdir": Path(os.path.relpath(root, data)).as_posix(),
        "cmd": f"python -m pipeline.fetch_data {Folder.name}",
        "deps": [(images.relative_to(root) if root in images.parents else images).as_posix()],
        "params": [{"params.yaml": ["data.options"]}],
        "outs": [{listing.relative_to(root).as_posix(): {"cache": False, "persist": True}}],
    }
    text = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump({"stages": {"images": stage}}, text)
    write_atomically(data / "dvc.yaml", text.getvalue().encode())


def _params() -> Params | None:
    """Return the parameters, or None outside a project; raise ValueError for a mistake in them or in the studies'."""
    try:
        root = find_root()
    except FileNotFoundError:
        return None
    params = read_params(root, extra_check=check_names)
    for study in read_studies(root).studies if (root / STUDIES).is_file() else ():
        read_params(root, study, check_names)
    if (root / CLAIMS_FILE).is_file():
        read_claim_list(root)
    return params


def _wanted(names: list[str], params: Params | None) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, options) of each data set to fetch; without names, the one that params.yaml specifies."""
    configured = {params.dataset: params.data.options} if params else {}
    return [(name, configured.get(name, {})) for name in names or configured or DEFAULT_NAMES]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
