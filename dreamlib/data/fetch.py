"""Fetch published files from the first source that has them, verify their MD5s and move them into place atomically."""

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


class DataError(RuntimeError):
    """A data file is missing, wrong or cannot be fetched; the message gives the remedy."""


class SourceError(Exception):
    """A source could not provide a file; ``fetch_files`` tries the next source and reports the reason if all fail."""


@dataclass(frozen=True)
class PublishedFile:
    """The name of a published file and the MD5 of its bytes, in 32 hexadecimal digits; '' if its source checks it."""

    name: str
    md5: str


class Source(Protocol):
    """A place that may have published files."""

    @property
    def title(self) -> str:
        """Name of the source in messages."""

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Write a file below ``scratch`` and return its path; raise SourceError with the reason if that fails.

        ``scratch`` is a temporary folder, the same for all files of a source.
        """


@dataclass(frozen=True)
class Mirror:
    """A web folder of the files.

    url: the folder, with a final slash.
    timeout_s: longest wait for the network, in seconds.
    """

    url: str
    timeout_s: float = 20.0

    @property
    def title(self) -> str:
        """Name of the source in messages: the URL."""
        return self.url

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Download one file."""
        request = urllib.request.Request(self.url + file.name, headers={"User-Agent": "dreamlib"})
        target = scratch / file.name
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response, target.open("wb") as out:
                shutil.copyfileobj(response, out, CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{self.url + file.name}: {error or type(error).__name__}") from error
        return target


def restore_gzip_header(stripped: bytes, name: str, mtime: int) -> bytes:
    """Return the bytes of a gzip file with the original file name and time restored in the header.

    stripped: the file as Debian packages it. For reproducible builds Debian removes name and time, so the MD5 differs
        from the published one although the compressed stream is the same.
    name: original file name.
    mtime: original modification time, in seconds since 1970.

    Bytes whose header has an optional field are returned unchanged. Raise ValueError for bytes that are not gzip. The
    header's layout is defined in RFC 1952, section 2.3.

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
class LocalFolder:
    """A local folder of the files, for example one of an installed package.

    title: name of the source in messages.
    path: the folder.
    mtimes: file name → original modification time in seconds since 1970, see ``restore_gzip_header``.
    """

    title: str
    path: Path
    mtimes: Mapping[str, int] = field(default_factory=dict)

    def get(self, file: PublishedFile, scratch: Path) -> Path:
        """Copy one file, and restore its gzip header if ``mtimes`` lists it."""
        target = scratch / file.name
        try:
            if file.name not in self.mtimes:
                return Path(shutil.copyfile(self.path / file.name, target))
            content = (self.path / file.name).read_bytes()
            target.write_bytes(restore_gzip_header(content, file.name.removesuffix(".gz"), self.mtimes[file.name]))
        except (OSError, ValueError) as error:
            raise SourceError(str(error)) from error
        return target


def md5_of(path: Path) -> str:
    """Return the MD5 of a file's bytes; MD5 because the published checksums are MD5s.

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
    """Return the command that fetches the data set in ``folder``."""
    command = f"`python -m pipeline.fetch_data {folder.name} --data-dir {folder.parent}`"
    return f"{command} (or `make data`, if params.yaml names this data set)"


def check_files(folder: Path, files: Sequence[PublishedFile]) -> list[Path]:
    """Verify ``files`` in ``folder`` and return their paths.

    Every load calls this, which takes about a tenth of a second. Raise DataError for a missing file or a wrong MD5,
    with the command that fetches the file; nothing on disk is changed.
    """
    for file in files:
        path = folder / file.name
        if not path.is_file():
            raise DataError(f"{path} is missing: run {command_for(folder)}")
        if file.md5 and (md5 := md5_of(path)) != file.md5:
            raise DataError(f"{_mismatch(path, file, md5)}. Delete it and run {command_for(folder)}")
    return [folder / file.name for file in files]


def fetch_files(folder: Path, files: Sequence[PublishedFile], sources: Sequence[Source]) -> list[Path]:
    """Fetch the files that are missing in ``folder``, verify all, and return their paths in the given order.

    folder: created if needed.
    files: names and MD5s.
    sources: tried in order. After its first failure a source is not tried for further files, so that an unreachable
        mirror costs one timeout.

    Existing correct files are not fetched again. A fetched file is moved into ``folder`` by an atomic rename after its
    MD5 is verified, so an interrupted fetch leaves no partial file.

    Raise DataError for an existing file with a wrong MD5, after moving it to ``.quarantine`` next to ``folder``, and
    for a file that no source has, with the reason for each source.
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
            f"Run {command_for(folder)} with access to a source, or with --from and a local folder that has the data."
        )
    return [folder / file.name for file in files]


def _fetch_from(source: Source, missing: Sequence[PublishedFile], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Next to the folder: on the same file system, so that the rename is atomic, but not in the folder, whose hash would
    # change with a file left by a killed process.
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".fetch-") as scratch:
        for file in missing:
            path = source.get(file, Path(scratch))
            if file.md5 and (md5 := md5_of(path)) != file.md5:
                raise SourceError(_mismatch(Path(file.name), file, md5, path.stat().st_size))
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(path, folder / file.name)
            log.info("%s: %s from %s", folder.name, file.name, source.title)


def _quarantine_if_wrong(path: Path, file: PublishedFile) -> None:
    if not path.exists() or not file.md5 or (md5 := md5_of(path)) == file.md5:
        return
    message = _mismatch(path, file, md5)
    quarantine = path.parent.resolve().parent / ".quarantine"
    quarantine.mkdir(exist_ok=True)
    # Not deleted, because it may be a user's own file. The hash keeps different wrong files of one name apart.
    target = quarantine / f"{path.parent.name}.{path.name}.{md5[:8]}"
    os.replace(path, target)
    raise DataError(f"{message}. It was moved to {target}: delete that and run {command_for(path.parent)} again")


def _mismatch(path: Path, file: PublishedFile, md5: str, size_bytes: int | None = None) -> str:
    """Return the message for a file whose MD5 is not the published one."""
    size_bytes = path.stat().st_size if size_bytes is None else size_bytes
    return f"{path} is not the published file: its MD5 is {md5} ({size_bytes} bytes), expected {file.md5}"
