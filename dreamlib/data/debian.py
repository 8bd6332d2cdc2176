"""Debian's data set packages as a source: installed, or downloaded and unpacked without root."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dreamlib.data.fetch import PublishedFile, SourceError

WAIT_S = 900
NETWORK_OPTIONS = ("Acquire::http::Timeout=10", "Acquire::https::Timeout=10", "Acquire::Retries=0")


def restore_gzip_header(stripped: bytes, name: str, mtime: int) -> bytes:
    """A gzip file's bytes with the original name and time back in the header.

    Debian strips both so that its builds are reproducible: the compressed stream is the published one, the header is
    not, and so the MD5 differs. ``mtime`` is in seconds since 1970. Bytes whose header has any optional field already
    come back unchanged. Raises ValueError for bytes that are not gzip. Layout: RFC 1952, section 2.3.

    >>> restore_gzip_header(bytes.fromhex("1f8b0800000000000003") + b"compressed stream", "a", 1)[:12].hex(" ")
    '1f 8b 08 08 01 00 00 00 00 03 61 00'
    """
    if stripped[:3] != b"\x1f\x8b\x08" or len(stripped) < 18:
        raise ValueError(f"{name}: not a gzip file (it begins with {stripped[:3].hex()})")
    if stripped[3] != 0:
        return stripped
    has_name = b"\x08"
    header = stripped[:3] + has_name + mtime.to_bytes(4, "little") + stripped[8:10]
    return header + name.encode() + b"\0" + stripped[10:]


@dataclass(frozen=True)
class DebianFolder:
    """The files as an installed Debian package put them; ``mtimes`` (file name → seconds) restores their headers."""

    path: Path
    mtimes: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The folder."""
        return f"installed Debian package ({self.path})"

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Copy one file, its gzip header restored."""
        try:
            content = (self.path / file.name).read_bytes()
            if file.name in self.mtimes:
                content = restore_gzip_header(content, file.name.removesuffix(".gz"), self.mtimes[file.name])
        except (OSError, ValueError) as error:
            raise SourceError(str(error)) from error
        target = scratch / file.name
        target.write_bytes(content)
        return target


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package that apt can download, unpacked in a scratch folder: nothing is installed, no root is needed.

    ``folder`` is where the package keeps the files, relative to the root of the file system.
    """

    package: str
    folder: str
    mtimes: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The package's name."""
        return f"Debian package {self.package}"

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Copy one file out of the package; the first call downloads and unpacks it."""
        unpacked = scratch / "unpacked"
        if not unpacked.exists():
            run(["dpkg", "-x", str(self._download(scratch)), str(unpacked)], scratch)
        return DebianFolder(unpacked / self.folder, self.mtimes).get(file, scratch)

    def _download(self, scratch: Path) -> Path:
        options = [part for option in NETWORK_OPTIONS for part in ("-o", option)]
        try:
            run(["apt-get", "-q", *options, "download", self.package], scratch)
        except SourceError:
            # Most likely package lists are absent (a container) or old: private ones need no root.
            options += private_apt(scratch)
            complaints = run(["apt-get", "-q", *options, "update"], scratch)
            try:
                run(["apt-get", "-q", *options, "download", self.package], scratch)
            except SourceError as error:
                # apt-get update succeeds even if it reached no server; only what it wrote tells.
                raise SourceError(f"{error} (apt-get update before it: {complaints or 'no complaint'})") from error
        found = sorted(scratch.glob(f"{self.package}_*.deb"))
        if not found:
            raise SourceError(f"apt-get downloaded no file named {self.package}_*.deb")
        return found[0]


def private_apt(scratch: Path) -> list[str]:
    """Options that make apt-get keep state and cache below ``scratch``, so that any user may update package lists."""
    state, cache = scratch / "apt-state", scratch / "apt-cache"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    settings = (
        f"Dir::State={state.resolve()}",
        f"Dir::Cache={cache.resolve()}",
        "Dir::State::status=/var/lib/dpkg/status",
        "Debug::NoLocking=1",
        "Acquire::Languages=none",
        # As root, apt drops to a user who cannot enter our private folder; the signatures are checked all the same.
        "APT::Sandbox::User=root",
    )
    return [part for setting in settings for part in ("-o", setting)]


def run(command: list[str], folder: Path) -> str:
    """Run a program in ``folder`` and return the end of what it wrote to stderr, on one line.

    Raises SourceError with the same words if it is absent, fails or hangs.
    """
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]} did not finish in {WAIT_S} s") from error
    last_words = "; ".join(done.stderr.strip().splitlines()[-3:])
    if done.returncode:
        raise SourceError(f"{command[0]} failed with status {done.returncode}: {last_words}")
    return last_words
