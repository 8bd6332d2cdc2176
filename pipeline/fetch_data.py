"""Fetch and verify data sets, after checking all parameters: ``python -m pipeline.fetch_data [NAME ...]``."""

import argparse
import logging
import sys
from typing import Any

from dreamlib.data import DATASETS, DataError, create
from dreamlib.data.fetch import DEFAULT_NAMES, md5_of
from pipeline.params import Params, find_root, read_params, read_studies
from pipeline.params.check import check_names
from pipeline.params.read import STUDIES
from pipeline.report.claims import CLAIMS_FILE, read_claim_list

LISTED = 10  # files of a data set; one of a user's own may have as many as images


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named data sets, print each file with its MD5, and return the exit status: 1 if any failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.fetch_data", description="Fetch and verify data sets.")
    known = ", ".join(DATASETS.names())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known} (default: the one params.yaml names)")
    parser.add_argument("--data-dir", help="folder of all data sets (default: data.directory of params.yaml, or data)")
    chosen = parser.parse_args(arguments)
    failed = False
    try:
        params = _params()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    folder = chosen.data_dir or (params.data.directory if params else "data")
    for name, options in _wanted(chosen.names, params):
        try:
            paths = create(name, options).fetch(folder)
            for path in paths[:LISTED]:
                print(f"{md5_of(path)}  {path}")
            if len(paths) > LISTED:
                print(f"... and {len(paths) - LISTED} more")
        except (DataError, ValueError) as error:
            # One data set that cannot be had is no reason to leave out the others.
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


def _params() -> Params | None:
    """Return the parameters where there is a project; raise ValueError for a mistake in them or in the studies'."""
    try:
        root = find_root()
    except FileNotFoundError:
        return None
    params = read_params(root, more=check_names)
    for study in read_studies(root).studies if (root / STUDIES).is_file() else ():
        read_params(root, study, check_names)
    if (root / CLAIMS_FILE).is_file():
        read_claim_list(root)
    return params


def _wanted(names: list[str], params: Params | None) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of each data set to fetch; without names, the one params.yaml asks for."""
    own = {params.dataset: params.data.options} if params else {}
    return [(name, own.get(name, {})) for name in names or own or DEFAULT_NAMES]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
