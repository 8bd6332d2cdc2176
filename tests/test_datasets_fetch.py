"""Fetching, without a network: verified before it is in place, the next source when one fails, nothing wrong left."""

import gzip
import hashlib
import itertools
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from dreamlib.data import DataError, debian
from dreamlib.data.debian import DebianPackage
from dreamlib.data.fashion_mnist import PACKED_AT, FashionMnist
from dreamlib.data.fetch import (
    LocalFolder,
    Mirror,
    PublishedFile,
    SourceError,
    fetch_files,
    restore_gzip_header,
)
from pipeline.fetch_data import main

CONTENT = {"a.gz": b"first file" * 999, "b.gz": b"second file" * 999}
FILES = tuple(PublishedFile(name, hashlib.md5(content).hexdigest()) for name, content in CONTENT.items())


@dataclass
class Fake:
    """A source that gives what it was given, and remembers what it was asked for."""

    content: dict
    title: str = "fake"

    def __post_init__(self):
        self.asked = []

    def get(self, file, scratch):
        self.asked.append(file.name)
        if file.name not in self.content:
            raise SourceError("it is down")
        path = scratch / file.name
        path.write_bytes(self.content[file.name])
        return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "toy"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_arrive_whole_and_a_second_fetch_asks_nobody(folder):
    source = Fake(CONTENT)
    assert fetch_files(folder, FILES, [source]) == [folder / "a.gz", folder / "b.gz"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert fetch_files(folder, FILES, [source]) == fetch_files(folder, FILES, [])
    assert source.asked == ["a.gz", "b.gz"]
    assert names(folder.parent) == ["toy"]  # no scratch folder left
    assert stat.S_IMODE((folder / "a.gz").stat().st_mode) & stat.S_IRUSR


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-5], lambda content: b"<html>sign in</html>", lambda _: b""]
)
def test_a_wrong_or_truncated_file_never_gets_its_name(folder, spoil):
    bad = Fake(CONTENT | {"b.gz": spoil(CONTENT["b.gz"])}, title="bad mirror")
    found = hashlib.md5(bad.content["b.gz"]).hexdigest()
    with pytest.raises(
        DataError, match=rf"(?s)could not fetch b.gz .*bad mirror.*{found}.*{FILES[1].md5}.*Run `python"
    ):
        fetch_files(folder, FILES, [bad])
    assert names(folder) == ["a.gz"]
    assert names(folder.parent) == ["toy"]


def test_the_second_source_gives_what_the_first_could_not(folder):
    first = Fake({"a.gz": CONTENT["a.gz"], "b.gz": b"damaged"})
    second = Fake(CONTENT)
    fetch_files(folder, FILES, [Fake({}), first, second, third := Fake(CONTENT)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert (second.asked, third.asked) == (["b.gz"], [])


def test_with_no_source_each_reason_is_listed_and_each_source_asked_once(folder, tmp_path):
    gone = Mirror((tmp_path / "nowhere").as_uri() + "/")
    down = Fake({}, title="mirror two")
    with pytest.raises(DataError) as refused:
        fetch_files(folder, FILES, [gone, LocalFolder("the attic", tmp_path / "attic"), down])
    message = str(refused.value)
    for part in ("a.gz, b.gz", str(folder), gone.url + "a.gz", "No such file", "the attic", "mirror two: it is down"):
        assert part in message
    assert down.asked == ["a.gz"]
    assert "--data-dir" in message


def test_a_wrong_file_found_in_place_is_moved_away_and_the_next_run_succeeds(folder, tmp_path):
    fetch_files(folder, FILES, [Fake(CONTENT)])
    (folder / "a.gz").write_bytes(b"edited")
    edited = hashlib.md5(b"edited").hexdigest()
    with pytest.raises(DataError, match=rf"a.gz.*{edited}.*{FILES[0].md5}.*delete that and run `python"):
        fetch_files(folder, FILES, [Fake(CONTENT)])
    assert names(folder) == ["b.gz"]
    assert [path.read_bytes() for path in (tmp_path / "data" / ".quarantine").iterdir()] == [b"edited"]
    fetch_files(folder, FILES, [Fake(CONTENT)])
    assert (folder / "a.gz").read_bytes() == CONTENT["a.gz"]


def test_a_process_killed_before_the_rename_leaves_nothing_in_the_folder(folder, monkeypatch):
    in_place = []

    def killed(*_):
        in_place.extend(names(folder))
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_files(folder, FILES, [Fake(CONTENT)])
    assert in_place == names(folder) == []  # not even a temporary file: a power cut cleans nothing up


def test_a_mirror_is_read_over_its_url(folder, tmp_path):
    (tmp_path / "web").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "web" / name).write_bytes(content)
    fetch_files(folder, FILES, [Mirror((tmp_path / "web").as_uri() + "/")])
    assert (folder / "b.gz").read_bytes() == CONTENT["b.gz"]


def published_and_stripped(tmp_path):
    """gzip's own header with name and time, and the same file as Debian ships it: fields removed, another time."""
    path = tmp_path / "train-toy-ubyte.gz"
    with path.open("wb") as raw, gzip.GzipFile("train-toy-ubyte", "wb", fileobj=raw, mtime=PACKED_AT["train"]) as out:
        out.write(b"pixels" * 100)
    published = path.read_bytes()
    head = 10 + len(b"train-toy-ubyte\0")
    stripped = published[:3] + b"\0" + (1591347949).to_bytes(4, "little") + published[8:10] + published[head:]
    assert gzip.decompress(stripped) == gzip.decompress(published)
    return published, stripped


def test_header_restoration_gives_back_what_gzip_wrote(tmp_path):
    published, stripped = published_and_stripped(tmp_path)
    assert restore_gzip_header(stripped, "train-toy-ubyte", PACKED_AT["train"]) == published
    assert restore_gzip_header(published, "train-toy-ubyte", PACKED_AT["train"]) == published
    with pytest.raises(ValueError, match="not a gzip file"):
        restore_gzip_header(b"<html>" * 9, "train-toy-ubyte", 0)


def debian_stand_in(package_folder, stripped, calls, lists_present):
    """apt-get and dpkg as functions: 'download' writes a package, '-x' unpacks it."""

    def run(command, cwd, **_):
        calls.append(command)
        private = any(part.startswith("Dir::State=") for part in command)
        if command[0] == "dpkg":
            unpacked = Path(command[3]) / package_folder
            unpacked.mkdir(parents=True)
            (unpacked / "train-toy-ubyte.gz").write_bytes(stripped)
        elif "download" in command and not (lists_present or private):
            return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package toy")
        elif "download" in command:
            (Path(cwd) / "toy_1_all.deb").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.mark.parametrize("lists_present", [True, False])
def test_the_debian_package_is_unpacked_once_and_restored(folder, tmp_path, monkeypatch, lists_present):
    published, stripped = published_and_stripped(tmp_path)
    file = PublishedFile("train-toy-ubyte.gz", hashlib.md5(published).hexdigest())
    calls = []
    monkeypatch.setattr(subprocess, "run", debian_stand_in("usr/share/toy", stripped, calls, lists_present))
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    fetch_files(folder, [file], [DebianPackage("toy", "usr/share/toy", {file.name: PACKED_AT["train"]})])
    assert (folder / file.name).read_bytes() == published
    done = [next(word for word in ("download", "update", "-x") if word in call) for call in calls]
    assert done == (["download", "-x"] if lists_present else ["download", "update", "download", "-x"])


def test_debian_tools_that_are_absent_or_fail_are_reasons_not_crashes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"Debian package toy: apt-get is not installed"):
        fetch_files(folder, FILES, [DebianPackage("toy", "usr/share/toy")])
    monkeypatch.setattr(debian.shutil, "which", lambda name: name)
    with pytest.raises(SourceError, match="failed with status 3: oh no"):
        debian.run(["sh", "-c", "echo oh no >&2; exit 3"], tmp_path)
    with pytest.raises(DataError, match="installed package"):
        fetch_files(folder, FILES, [LocalFolder("installed package", tmp_path / "absent")])


def test_fashion_mnist_tries_the_nearest_source_first():
    installed, package, mirror = FashionMnist().sources()
    assert str(installed.path) == "/usr/share/datasets/fashion-mnist"
    assert package.package == "dataset-fashion-mnist"
    assert isinstance(mirror, Mirror)
    assert set(installed.mtimes) == {file.name for file in FashionMnist().files()}


def test_the_command_fetches_reports_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(FashionMnist, "sources", lambda self: (Fake({}, title="a mirror"),))
    assert main(["fashion_mnist", "digits", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "fashion_mnist: could not fetch" in said.err
    assert "a mirror: it is down" in said.err
    assert f"9b335364a7bfd63947c7480a5bd51f2d  {tmp_path}/digits/digits.csv.gz" in said.out
    assert main(["digits", "--data-dir", str(tmp_path)]) == 0
    assert main(["digtis", "--data-dir", str(tmp_path)]) == 1
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_without_names_the_command_fetches_what_params_yaml_asks_for(tmp_path, capsys, monkeypatch):
    (tmp_path / "methods.yaml").write_text("{}\n")
    values = "dataset: digits\nipc: [1]\nmethods: [m]\nseeds: [0]\nbudget: b\nmethod: {m: {}}\nbudgets: {b: {}}\n"
    (tmp_path / "params.yaml").write_text(values)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert "data/digits/digits.csv.gz" in capsys.readouterr().out
    assert not (tmp_path / "data" / "fashion_mnist").exists()


def test_a_mistake_in_params_yaml_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "methods.yaml").write_text("{}\n")
    (tmp_path / "params.yaml").write_text("dataset: digits\nipc: 1\n")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: params.yaml: ipc: expected a list, one item per line")
    assert said.count("\n") == 1


def test_of_many_files_the_first_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, label, row in itertools.product(("train", "test"), "ab", range(4)):
        (tmp_path / "mine" / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), row).save(tmp_path / "mine" / split / label / f"{row}.png")
    (tmp_path / "methods.yaml").write_text("{}\n")
    options = "data: {options: {path: mine, size: 4, channels: 1}}\n"
    values = "dataset: folder\nipc: [1]\nmethods: [m]\nseeds: [0]\nbudget: b\nmethod: {m: {}}\nbudgets: {b: {}}\n"
    (tmp_path / "params.yaml").write_text(values + options)
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[10:] == ["... and 6 more"]
