"""Checkpoints: whole or known not to be, one generation in reserve, whatever is killed or damaged."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from harness.errors import UserError
from harness.storage import integrity
from harness.storage.integrity import Damaged, generations, previous, set_aside
from harness.training import checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "group" / "checkpoint.pt"


def saved(path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(path, {"step": step, "weights": torch.arange(100.0) + step})


def names(path) -> list[str]:
    return sorted(os.listdir(path.parent))


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def places(size: int) -> list[int]:
    """Some throughout a file, and all of its end, where the archive's last record and the checksum are."""
    return [*range(0, size - 150, 9), *range(size - 150, size)]


def test_what_was_saved_is_loaded_and_any_reader_of_torchs_files_reads_it(path):
    saved(path, 3)
    found = checkpoint.load(path)
    assert found["step"] == 3 and torch.equal(found["weights"], torch.arange(100.0) + 3)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_the_generation_before_is_kept_and_no_more(path):
    saved(path, 1, 2, 3)
    assert names(path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert checkpoint.load(path)["step"] == 3
    assert checkpoint.load(previous(path))["step"] == 2


def test_a_flipped_bit_anywhere_is_noticed(path):
    saved(path, 1)
    for place in places(path.stat().st_size):
        flip(path, place)
        with pytest.raises(Damaged):
            checkpoint._read(path)
        flip(path, place)
    checkpoint._read(path)


def test_any_truncation_but_that_of_the_whole_checksum_is_noticed(path):
    saved(path, 1)
    whole = path.read_bytes()
    for length in places(len(whole)):
        path.write_bytes(whole[:length])
        if length == len(whole) - integrity.TRAILER:
            assert checkpoint._read(path)["step"] == 1  # nothing is missing of what it is of
            continue
        with pytest.raises(Damaged):
            checkpoint._read(path)


def test_a_damaged_one_is_set_aside_and_said_and_the_one_before_is_used(path):
    saved(path, 1, 2)
    flip(path, 500)
    said = []
    assert checkpoint.load(path, said.append)["step"] == 1
    assert names(path) == ["checkpoint.previous.pt", "checkpoint.pt.damaged-1"]
    assert said == [
        f"{path} is damaged: its checksum is not that of its content; it is set aside as checkpoint.pt.damaged-1, "
        "and the checkpoint before it is used"
    ]


def test_going_on_after_damage_leaves_the_damaged_one_alone(path):
    saved(path, 1, 2)
    cut(path, 100)
    checkpoint.load(path)
    saved(path, 3)
    cut(path, 100)
    assert checkpoint.load(path)["step"] == 1
    saved(path, 4)
    assert names(path) == [
        "checkpoint.previous.pt", "checkpoint.pt", "checkpoint.pt.damaged-1", "checkpoint.pt.damaged-2"
    ]  # fmt: skip


def test_where_neither_is_whole_both_are_set_aside_and_named(path):
    saved(path, 1, 2)
    cut(path, 100)
    flip(previous(path), 500)
    with pytest.raises(checkpoint.Lost) as error:
        checkpoint.load(path)
    assert "checkpoint.pt.damaged-1" in str(error.value) and "checkpoint.previous.pt.damaged-1" in str(error.value)
    assert names(path) == ["checkpoint.previous.pt.damaged-1", "checkpoint.pt.damaged-1"]


def test_where_there_is_none_it_is_said(path):
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.load(path)


def test_one_of_an_earlier_version_without_a_checksum_is_read(path):
    path.parent.mkdir()
    torch.save({"step": 7}, path)
    assert checkpoint.load(path)["step"] == 7


def test_code_in_a_checkpoint_never_runs(path, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path.parent.mkdir()
    torch.save({"step": Evil()}, path)
    with pytest.raises(checkpoint.Lost):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def killed_at(path, name: str, count: int) -> int:
    """The exit code of a child that saves step 3 and is killed at the count-th call of a function of os."""
    child = os.fork()
    if child == 0:
        calls, real = [], getattr(os, name)

        def counted(*args):
            calls.append(args)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        setattr(os, name, counted)
        saved(path, 3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("name", "count", "step"), [("fsync", 1, 2), ("replace", 1, 2), ("replace", 2, 2), ("fsync", 2, 3)]
)
def test_a_kill_at_any_moment_of_saving_leaves_a_whole_one(name, count, step, path):
    saved(path, 1, 2)
    assert killed_at(path, name, count) == -signal.SIGKILL
    assert checkpoint.load(path)["step"] == step
    saved(path, 4)
    assert names(path) == ["checkpoint.previous.pt", "checkpoint.pt"]  # what the killed one left is removed
    assert checkpoint.load(path)["step"] == 4 and checkpoint.load(previous(path))["step"] == step


def test_a_name_that_is_taken_is_not_written_over(path):
    saved(path, 1)
    first = set_aside(path)
    saved(path, 2)
    assert [first.name, set_aside(path).name] == ["checkpoint.pt.damaged-1", "checkpoint.pt.damaged-2"]
    assert generations(path) == []


def test_who_comes_second_to_set_something_aside_is_told_where_it_is(path):
    saved(path, 1)
    assert set_aside(path) == set_aside(path) == path.with_name("checkpoint.pt.damaged-1")
