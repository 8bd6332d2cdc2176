"""A checkpoint is whole or not there; a file that is not, whatever happened to it, is never used."""

import errno
import os
import re
import resource

import pytest
import torch

from dreamlib._engine import files
from dreamlib._engine.checkpoint import Checkpoint

STATE = {"iteration": 7, "canvases": torch.arange(12.0).view(3, 4), "history": [(0, 1.5)], "chosen": None}


def saved(folder, key="abc"):
    checkpoint = Checkpoint(folder, key)
    checkpoint.save(STATE)
    return checkpoint


def test_what_was_saved_is_loaded(tmp_path):
    got = saved(tmp_path / "deep" / "er").load()
    assert torch.equal(got.pop("canvases"), STATE["canvases"])
    assert got == {k: v for k, v in STATE.items() if k != "canvases"}


def test_none_where_there_is_none(tmp_path, caplog):
    assert Checkpoint(tmp_path, "abc").load() is None
    assert not caplog.records


def test_a_file_torn_at_any_length_is_not_used_and_says_so(tmp_path, caplog):
    checkpoint = saved(tmp_path)
    whole = checkpoint.path.read_bytes()
    for kept in [*range(0, 48), *range(48, len(whole), 97), len(whole) - 1]:
        checkpoint.path.write_bytes(whole[:kept])
        caplog.clear()
        assert checkpoint.load() is None, kept
        assert "torn or corrupt" in caplog.text


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    checkpoint = saved(tmp_path)
    whole = bytearray(checkpoint.path.read_bytes())
    for place in [*range(0, 48), *range(48, len(whole), 53), len(whole) - 1]:
        whole[place] ^= 4
        checkpoint.path.write_bytes(whole)
        assert checkpoint.load() is None, place
        whole[place] ^= 4
    checkpoint.path.write_bytes(whole)
    assert checkpoint.load() is not None


def test_another_runs_file_is_not_used_even_under_our_name(tmp_path, caplog):
    foreign, ours = saved(tmp_path, "theirs"), Checkpoint(tmp_path, "ours")
    assert ours.load() is None
    os.replace(foreign.path, ours.path)
    assert ours.load() is None
    assert "belongs to another run" in caplog.text


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault):
    checkpoint = saved(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, fault, full)
    remedy = "Free space on the disk or make the folder writable, and run the same command again"
    with pytest.raises(
        OSError, match=re.escape(f"cannot write {checkpoint.path}: No space left on device; ")
    ) as caught:
        checkpoint.save({"iteration": 8})
    assert str(caught.value).endswith(remedy)
    monkeypatch.undo()
    assert checkpoint.load()["iteration"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["abc.ckpt"]


def test_a_write_that_breaks_off_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    """A file may have 50 kB here: the system writes as much and then refuses, as on a full disk."""
    path, before = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    files.write_atomically(path, b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write_atomically(path, bytes(100_000))
        with pytest.raises(OSError, match=f"cannot write {tmp_path}: File too large"):
            files.require_writable(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    files.require_writable(tmp_path, tmp_path / "new")
    assert list(tmp_path.iterdir()) == [path], "nothing is left behind"


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (files.require_writable, lambda path: files.write_atomically(path / "x", b"")):
        with pytest.raises(OSError, match=r"cannot write .*Not a directory.*make the folder writable"):
            write(tmp_path / "file" / "folder")


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (done.append("fsync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    saved(tmp_path)
    assert done[:2] == ["fsync", "replace"]


def test_delete_removes_and_may_be_called_twice(tmp_path):
    checkpoint = saved(tmp_path)
    checkpoint.delete()
    checkpoint.delete()
    assert list(tmp_path.iterdir()) == []


def test_json_bytes_repeat_whatever_the_order(tmp_path):
    files.write_json(tmp_path / "a", {"x": 1, "y": [1, 2]})
    files.write_json(tmp_path / "b", {"y": [1, 2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(tmp_path / "a") == {"x": 1, "y": [1, 2]}
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        files.read_json(tmp_path / "c")
