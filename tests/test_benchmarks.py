"""The benchmark programs run to the end, measure what they say, and refuse where they would not. No times here."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.models import TimmVit

FOLDER = Path(__file__).parents[1] / "benchmarks"
LAST_LINE = re.compile(r"ratio: \d+\.\d+ \(goal <= \d+(\.\d+)?\)")
SPECK = {"width": 24, "depth": 4, "heads": 2, "patch": 8}


@pytest.fixture(autouse=True)
def _as_a_program(monkeypatch):
    """Benchmarks import one another as a program in their folder does; they set torch's threads."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def start(monkeypatch, capsys):
    """A program's main with these arguments: the lines that it prints."""

    def main(program, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [program.__name__, "--quick", "--threads", "1", *arguments])
        program.main()
        return capsys.readouterr().out.strip().splitlines()

    return main


@pytest.fixture
def shrunk(monkeypatch):
    """A program whose models are too small to be worth measuring."""

    def load(name: str):
        program = importlib.import_module(name)
        for shape in {"LARGE", "LAPTOP", "DEMO"} & set(vars(program)):
            small = dataclasses.replace(
                getattr(program, shape), teacher={**SPECK, "width": 72}, student=SPECK, image_size=32, batch_size=4
            )
            monkeypatch.setattr(program, shape, small)
        return program

    return load


def test_records_run_as_a_program_end_with_their_ratio():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "records.py"), "--quick"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert LAST_LINE.fullmatch(done.stdout.splitlines()[-1])


def test_probes_end_with_their_ratio(start, monkeypatch):
    program = importlib.import_module("probes")
    monkeypatch.setattr(program, "SIZE", 32)
    monkeypatch.setattr(program, "EPOCHS", 2)
    assert LAST_LINE.fullmatch(start(program)[-1])


def test_dense_probes_end_with_their_ratio_and_say_what_each_task_takes(start, monkeypatch):
    program, probes = importlib.import_module("dense_probes"), importlib.import_module("probes")
    for module in (program, probes):
        monkeypatch.setattr(module, "SIZE", 32)
    monkeypatch.setattr(program, "CLASSES", 5)
    lines = start(program)
    assert LAST_LINE.fullmatch(lines[-1])
    took = {
        line.split(":")[0]: float(re.search(r"take (\d+\.\d+) passes", line)[1]) for line in lines if "passes" in line
    }
    ratio = float(lines[-1].split()[1])
    assert set(took) == {"segmentation", "depth"} and max(took.values()) == pytest.approx(ratio, abs=0.06)


@pytest.mark.parametrize("name", ["overhead", "shared_teacher"])
def test_programs_on_training_end_with_their_ratio(name, start, shrunk):
    assert LAST_LINE.fullmatch(start(shrunk(name))[-1])


def test_the_bare_loop_is_the_harness_arithmetic_to_the_bit(start, shrunk):
    assert "after 35 steps both students have the same bits" in start(shrunk("overhead"))


def test_overhead_gives_no_ratio_where_the_bare_loop_does_other_arithmetic(start, shrunk, monkeypatch, capsys):
    program = shrunk("overhead")
    monkeypatch.setattr(program.BareLoop, "share", lambda self: 1.0)  # a schedule that is not the harness's
    with pytest.raises(SystemExit, match="not the same arithmetic"):
        start(program)
    assert "ratio" not in capsys.readouterr().out


def test_a_shared_teacher_gives_no_ratio_where_a_student_was_dropped(start, shrunk, monkeypatch, capsys):
    program = shrunk("shared_teacher")
    stream = program.stream

    def broken(*args):
        for batch in stream(*args):
            yield dataclasses.replace(batch, images=batch.images * float("nan"))

    monkeypatch.setattr(program, "stream", broken)
    with pytest.raises(SystemExit, match="nothing was measured"):
        start(program)
    assert "ratio" not in capsys.readouterr().out


def test_five_students_go_through_one_teacher_pass_a_step(start, shrunk, monkeypatch):
    program, passes = shrunk("shared_teacher"), collections.Counter()
    forward = TimmVit.__call__

    def counted(self, *args):
        passes["student" if self.model.training else "teacher"] += 1
        return forward(self, *args)

    monkeypatch.setattr(TimmVit, "__call__", counted)
    start(program)
    steps = 2 * 3  # two shapes, a warming step and two rounds
    assert passes == {"teacher": steps * 2, "student": steps * (5 + 1)}


def test_turns_alternate_so_that_neither_always_goes_first():
    pairs = importlib.import_module("pairs")
    order = []
    found = pairs.in_turns(lambda: order.append("one"), lambda: order.append("other"), rounds=3, device="cpu")
    assert order == ["one", "other", "other", "one", "one", "other"] and len(found) == 3


def test_the_ratio_is_the_median_of_the_rounds_and_not_of_their_sums():
    pairs = importlib.import_module("pairs")
    seconds = [(2.0, 1.0), (30.0, 10.0), (4.0, 1.0)]  # 2, 3, 4
    assert pairs.ratio([(pairs.Seconds(a, a), pairs.Seconds(b, b)) for a, b in seconds]) == 3.0
