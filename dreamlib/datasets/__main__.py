"""Fetch and verify data sets: ``python -m dreamlib.datasets [NAME ...] [--data-dir data]``."""

import argparse
import logging
import sys
from typing import Any

from dreamlib.datasets import DATASETS, DataError, create
from dreamlib.datasets.fetch import DEFAULT_NAMES, md5_of
from dreamlib.params import read_params


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named data sets, print each file with its MD5, and return the exit status: 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m dreamlib.datasets", description="Fetch and verify data sets.")
    known = ", ".join(DATASETS.names())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known} (default: the one params.yaml names)")
    parser.add_argument("--data-dir", default="data", help="folder of all data sets (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    failed = False
    for name, options in _wanted(chosen.names):
        try:
            for path in create(name, options).fetch(chosen.data_dir):
                print(f"{md5_of(path)}  {path}")
        except (DataError, ValueError) as error:
            # One data set that cannot be had is no reason to leave out the others.
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _wanted(names: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of each data set to fetch; without names, the one params.yaml asks for."""
    if names:
        return [(name, {}) for name in names]
    try:
        params = read_params()
    except FileNotFoundError:
        return [(name, {}) for name in DEFAULT_NAMES]
    return [(params.dataset, params.data.options)]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
