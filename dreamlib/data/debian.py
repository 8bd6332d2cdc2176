"""Debian packages of data sets as sources: installed ones, or downloaded and unpacked without root."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreamlib.data.fetch import LocalFolder, PublishedFile, SourceError

WAIT_S = 900
NETWORK_OPTIONS = ("Acquire::http::Timeout=10", "Acquire::https::Timeout=10", "Acquire::Retries=0")


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package that apt downloads; it is unpacked in a scratch folder, not installed, and needs no root.

    package: its name.
    folder: the package's folder of the files, relative to the root of the file system.
    mtimes: see ``LocalFolder``.
    """

    package: str
    folder: str
    mtimes: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the source in messages."""
        return f"Debian package {self.package}"

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Copy one file out of the package; the first call downloads and unpacks it."""
        unpacked = scratch / "unpacked"
        if not unpacked.exists():
            run(["dpkg", "-x", str(self._download(scratch)), str(unpacked)], scratch)
        return LocalFolder(self.title, unpacked / self.folder, self.mtimes).get(file, scratch)

    def _download(self, scratch: Path) -> Path:
        options = [part for option in NETWORK_OPTIONS for part in ("-o", option)]
        try:
            run(["apt-get", "-q", *options, "download", self.package], scratch)
        except SourceError:
            # The package lists are probably missing, as in a container, or old. Updating private ones needs no root.
            options += private_apt(scratch)
            messages = run(["apt-get", "-q", *options, "update"], scratch)
            try:
                run(["apt-get", "-q", *options, "download", self.package], scratch)
            except SourceError as error:
                # apt-get update succeeds even if it reached no server, so its messages may hold the cause.
                raise SourceError(f"{error} (apt-get update before that: {messages or 'no message'})") from error
        packages = sorted(scratch.glob(f"{self.package}_*.deb"))
        if not packages:
            raise SourceError(f"apt-get downloaded no file named {self.package}_*.deb")
        return packages[0]


def private_apt(scratch: Path) -> list[str]:
    """Return options with which apt-get keeps state and cache in ``scratch``, so that any user can update the lists."""
    state, cache = scratch / "apt-state", scratch / "apt-cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    settings = (
        f"Dir::State={state.resolve()}",
        f"Dir::Cache={cache.resolve()}",
        "Dir::State::status=/var/lib/dpkg/status",
        "Debug::NoLocking=1",
        "Acquire::Languages=none",
        # As root, apt would switch to a user without access to the scratch folder. Signatures are still verified.
        "APT::Sandbox::User=root",
    )
    return [part for setting in settings for part in ("-o", setting)]


def run(command: list[str], folder: Path) -> str:
    """Run a program in ``folder`` and return the last lines of its stderr, joined.

    Raise SourceError if it is not installed, fails (with those lines) or takes longer than ``WAIT_S`` seconds.
    """
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]} did not finish in {WAIT_S} s") from error
    messages = "; ".join(result.stderr.strip().splitlines()[-3:])
    if result.returncode:
        raise SourceError(f"{command[0]} failed with status {result.returncode}: {messages}")
    return messages
