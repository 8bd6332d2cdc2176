"""Fetch and verify data sets: ``python -m dreamlib.datasets [NAME ...] [--data-dir data]``."""

import argparse
import logging
import sys

from dreamlib.datasets import DATASETS, DataError, create
from dreamlib.datasets.fetch import DEFAULT_NAMES, md5_of


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named data sets, print each file with its MD5, and return the exit status: 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m dreamlib.datasets", description="Fetch and verify data sets.")
    known = ", ".join(DATASETS.names())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known} (default: {' '.join(DEFAULT_NAMES)})")
    parser.add_argument("--data-dir", default="data", help="folder of all data sets (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    failed = False
    for name in chosen.names or DEFAULT_NAMES:
        try:
            for path in create(name).fetch(chosen.data_dir):
                print(f"{md5_of(path)}  {path}")
        except (DataError, ValueError) as error:
            # One data set that cannot be had is no reason to leave out the others.
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
