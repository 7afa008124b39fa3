"""A real training, killed at random moments again and again, comes to the bits of one that nobody disturbed.

The machinery is that of benchmarks/faults.py, which counts what each kind of fault costs.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import faults
from lives import ASKED, SIGNALS, STEPS, Trial, experiment, images, results

KILLS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The training, which saves after every step, so that kills land in checkpoints too."""
    return experiment(images(tmp_path_factory.mktemp("images")), checkpoint_steps=1)


@pytest.fixture(scope="module")
def truth(made, tmp_path_factory) -> dict[str, str]:
    calm = Trial(made, tmp_path_factory.mktemp("calm"), {})
    assert calm.live().code == 0
    return results(made, calm.workspace)


def test_thirty_kills_at_random_moments_change_no_bit(made, truth, tmp_path):
    assert len(truth) == 2
    draws, ended = random.Random(0), []
    while len(ended) < KILLS:
        trial = Trial(made, tmp_path / str(len(ended)), truth)
        ended += trial.torture(draws, SIGNALS, reach=4)
        assert results(made, trial.workspace) == truth, "other bits, another log or another record than undisturbed"
        assert not list(trial.workspace.glob("groups/*")) and not list(trial.workspace.glob("students/*.partial"))
        assert not list(trial.workspace.rglob("*.damaged-*"))
    codes = {life.code for life in ended}
    assert -signal.SIGKILL in codes and ASKED in codes  # both kinds of ends were among them


def test_what_the_torture_compares_tells_a_changed_bit_from_none(made, truth, tmp_path):
    trial = Trial(made, tmp_path, truth)
    trial.live()
    assert trial.lost() == 0
    for pattern in ("students/*/model.safetensors", "students/*/train.jsonl"):
        path = sorted(tmp_path.glob(pattern))[0]
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        assert trial.lost() == 1
        path.write_bytes(whole)
    next(tmp_path.glob("records/*.json")).unlink()
    assert trial.lost() == 1


def test_work_done_again_is_counted_from_the_last_checkpoint(made, truth, tmp_path):
    trial = Trial(made, tmp_path, truth)
    trial.live(6, signal.SIGTERM)  # the beginning and five steps
    assert trial.again() == (0, 0.0)
    for path in tmp_path.glob("groups/*/checkpoint*.pt"):
        path.unlink()
    steps, seconds = trial.again()
    assert 5 <= steps < STEPS and 0 < seconds < trial.lives[0].ended_s - trial.lives[0].events[0].at_s + 1e-9


def test_the_benchmark_prints_what_each_kind_of_fault_cost(monkeypatch, capsys):
    chosen = ("newest checkpoint cut short", "data out of reach")
    monkeypatch.setattr(faults, "FAULTS", {kind: faults.FAULTS[kind] for kind in chosen})
    monkeypatch.setattr(sys, "argv", ["faults.py", "--quick"])
    faults.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[:3] for row in rows] == [[kind, "1", "0"] for kind in chosen]
    assert 0 < int(rows[0][3]) <= 2 * faults.EVERY and int(rows[1][3]) == 0
    assert lines[-1] == "runs lost: 0, by 2 faults (goal 0)"
