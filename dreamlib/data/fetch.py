"""Published files: fetched from the first source that has them, checked by MD5, put in place whole or not at all."""

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
DEFAULT_NAMES = ("fashion_mnist", "digits")  # what `make data` fetches: the pipeline's data and its quick trial


class DataError(RuntimeError):
    """A data file that is missing, wrong or cannot be fetched; the message holds the remedy."""


class SourceError(Exception):
    """Why one source could not give a file; ``fetch_files`` turns to the next one and reports it only if all fail."""


@dataclass(frozen=True)
class PublishedFile:
    """A file as its authors published it: its name and the MD5 of its bytes (32 hexadecimal digits)."""

    name: str
    md5: str


class Source(Protocol):
    """A place that may have published files. Several in a row make a fetch robust."""

    @property
    def title(self) -> str:
        """How messages call this source."""

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Write the file somewhere below ``scratch`` and return where; raises SourceError with the reason if it cannot.

        ``scratch`` is one folder for all files of one source, empty at first, removed by the caller.
        """


@dataclass(frozen=True)
class Mirror:
    """A web folder that holds the files under their own names; ``timeout_s`` bounds each wait for the network."""

    url: str
    timeout_s: float = 20.0

    @property
    def title(self) -> str:
        """The address."""
        return self.url

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Download one file."""
        request = urllib.request.Request(self.url + file.name, headers={"User-Agent": "dreamlib"})
        target = scratch / file.name
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply, target.open("wb") as out:
                shutil.copyfileobj(reply, out, CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{self.url + file.name}: {error or type(error).__name__}") from error
        return target


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine that holds the files, for example one that an installed package brought."""

    title: str
    path: Path

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Copy one file."""
        try:
            return Path(shutil.copyfile(self.path / file.name, scratch / file.name))
        except OSError as error:
            raise SourceError(str(error)) from error


def md5_of(path: Path) -> str:
    """MD5 of a file's bytes, read in pieces; the published checksums are MD5s, which is why nothing stronger serves.

    >>> import os
    >>> md5_of(Path(os.devnull))
    'd41d8cd98f00b204e9800998ecf8427e'
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def command_for(folder: Path) -> str:
    """What to type to fetch the data set that lives in ``folder``."""
    command = f"`python -m pipeline.fetch_data {folder.name} --data-dir {folder.parent}`"
    return f"`make data` (or {command})" if folder.name in DEFAULT_NAMES else command


def check_files(folder: Path, files: Sequence[PublishedFile]) -> list[Path]:
    """The paths of ``files`` in ``folder``, once each is known to be there and right.

    Every load calls this: a tenth of a second buys the certainty that results rest on the published bytes. Raises
    DataError naming the file, both hashes and the command that fetches it; changes nothing on disk.
    """
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise DataError(f"{path} is missing: run {command_for(folder)}")
        if (found := md5_of(path)) != file.md5:
            raise DataError(f"{_wrong(path, file, found)}. Delete it and run {command_for(folder)}")
    return [folder / file.name for file in files]


def fetch_files(folder: Path, files: Sequence[PublishedFile], sources: Sequence[Source]) -> list[Path]:
    """Bring every file of ``files`` into ``folder``, verified, and return their paths in the given order.

    Files that are there and right stay untouched, so a second call needs no source. Sources are asked in order; the
    first failure of one ends its turn, so that an unreachable mirror costs one time-out, not one a file. A file gets
    its name in ``folder`` after its MD5 was checked, by an atomic rename: an interrupted fetch leaves nothing there.

    Raises DataError when a file already there is wrong (it is moved to ``.quarantine`` beside ``folder``, never
    left in place) and when no source had a file, listing each source and its reason.
    """
    for file in files:
        _quarantine_if_wrong(folder / file.name, file)
    reasons: list[str] = []
    for source in sources:
        missing = [file for file in files if not (folder / file.name).exists()]
        if not missing:
            break
        try:
            _fetch_from(source, missing, folder)
        except SourceError as error:
            reasons.append(f"{source.title}: {error}")
            log.info("%s: not from %s: %s", folder.name, source.title, error)
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing:
        tried = "".join(f"\n  - {reason}" for reason in reasons) or " none"
        raise DataError(
            f"could not fetch {', '.join(file.name for file in missing)} into {folder}. Sources tried:{tried}\n"
            f"Run {command_for(folder)} where a source can be reached, or copy the published files into {folder}."
        )
    return [folder / file.name for file in files]


def _fetch_from(source: Source, missing: Sequence[PublishedFile], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder rather than in it: the same file system, so that the rename is atomic, and if the process is
    # killed no stray file joins the published ones, whose directory is pinned by hash.
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".fetch-") as scratch:
        for file in missing:
            path = source.get(file, Path(scratch))
            if (found := md5_of(path)) != file.md5:
                raise SourceError(_wrong(Path(file.name), file, found, path.stat().st_size))
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(path, folder / file.name)
            log.info("%s: %s from %s", folder.name, file.name, source.title)


def _quarantine_if_wrong(path: Path, file: PublishedFile) -> None:
    if not path.exists() or (found := md5_of(path)) == file.md5:
        return
    wrong = _wrong(path, file, found)
    quarantine = path.parent.resolve().parent / ".quarantine"
    quarantine.mkdir(exist_ok=True)
    # The hash in the name keeps apart different wrong files of one name; what a person put here is theirs to delete.
    kept = quarantine / f"{path.parent.name}.{path.name}.{found[:8]}"
    os.replace(path, kept)
    raise DataError(f"{wrong}. It was moved to {kept}: delete that and run {command_for(path.parent)} again")


def _wrong(path: Path, file: PublishedFile, found: str, size_bytes: int | None = None) -> str:
    size_bytes = path.stat().st_size if size_bytes is None else size_bytes
    return f"{path} is not the published file: its MD5 is {found} ({size_bytes} bytes), it should be {file.md5}"
