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


def test_compare_ends_with_its_ratio_and_compares_every_item(monkeypatch, capsys):
    program = importlib.import_module("compare")
    for name, small in {"METHODS": 30, "SEEDS": 2, "TASKS": 6, "IMAGES": 60, "MAPS": 40, "DEPTHS": 40}.items():
        monkeypatch.setattr(program, name, small)
    monkeypatch.setattr(sys, "argv", ["compare", "--quick"])
    program.main()
    assert LAST_LINE.fullmatch(capsys.readouterr().out.strip().splitlines()[-1])


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


@pytest.fixture
def throughput(shrunk, monkeypatch):
    """benchmarks/throughput.py with tiny models, which nobody compiles."""
    monkeypatch.setattr(torch, "compile", lambda eager: eager)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return shrunk("throughput")


def test_throughput_has_a_row_for_every_number_of_methods_and_every_precision(start, throughput):
    lines = start(throughput)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]
    assert [(int(row[0]), row[1]) for row in rows] == [(n, m.title) for n in (1, 5, 10) for m in throughput.MODES]
    assert all(float(row[2]) > 0 and row[4:] == ["unknown", "unknown"] for row in rows)
    operations = [float(row[3]) for row in rows]
    assert operations == sorted(operations) and operations[0] < operations[4] < operations[8]
    assert len({*operations[:4]}) == 1  # what compiled blocks do is counted where they are eager
    assert [re.match(r"  (\d) workers?: \d+ images/s", line)[1] for line in lines[-3:]] == ["1", "2", "4"]
    assert "32 px" in lines[-4] and any("channels_last" in line for line in lines)


def test_throughput_reads_the_jpegs_that_it_is_given(start, throughput, tmp_path):
    throughput.made_up(tmp_path, 20)
    assert any("data: 20 JPEGs" in line for line in start(throughput, "--root", str(tmp_path)))
    with pytest.raises(SystemExit, match=r"--root: .*nowhere"):
        start(throughput, "--root", str(tmp_path / "nowhere"))


def test_throughput_without_a_gpu_says_so_and_measures_nothing(throughput, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--threads", "1"])
    throughput.main()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "no GPU: nothing is measured; --quick runs the program on the CPU, at small shapes"
    ]


def test_throughput_gives_no_figure_where_a_student_was_dropped(start, throughput, monkeypatch):
    stream = throughput.stream

    def broken(*args):
        for batch in stream(*args):
            yield dataclasses.replace(batch, labels=None)

    monkeypatch.setattr(throughput, "stream", broken)
    with pytest.raises(SystemExit, match=r"nothing was measured.*labels"):
        start(throughput)


def test_what_gpus_can_do_is_known_by_their_whole_name_and_unknown_otherwise(throughput):
    assert throughput.peak_of("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert throughput.peak_of("NVIDIA A100-SXM4-40GB", "tf32") == throughput.peak_of("NVIDIA A100 80GB PCIe", "tf32")
    for other in ("NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA A10G", "a CPU"):
        assert throughput.peak_of(other, "bf16") is None
    assert all(peaks["fp32"] < peaks["tf32"] < peaks["bf16"] for peaks in throughput.PEAKS.values())
    assert {mode.peak for mode in throughput.MODES} <= set(throughput.PEAKS["NVIDIA H200"])
