"""Small hand-made sets of records, and the tables of them that tests/golden_tables/ holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_leaderboard import DEPTH, record, seeds

from harness.records import Record
from leaderboard.board import Leaderboard
from leaderboard.drafts import Asked
from leaderboard.paper import like_paper
from leaderboard.render import render
from leaderboard.table import rows_and_columns
from leaderboard.write import SUFFIXES

GOLDEN = Path(__file__).parent / "golden_tables"
WIDTH = 120
DEPTH_TASK: dict[str, Any] = {"task": "depth", "metrics": DEPTH, "protocol": {"summary": "linear head"}}
L, S, T = "vit_large_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch16_224", "vit_tiny_patch16_224"


def pair() -> list[Record]:
    """Students of three seeds on two tasks; one lacks a seed of one task, one lacks a task. Bounds on one task."""
    return [
        *seeds("fitnet", 0.70, 0.72, 0.71, own_s=10.0, teacher_s=100.0, group_size=2, method_parameters=12_345),
        *seeds("fitnet", 0.412, 0.416, **DEPTH_TASK),
        *seeds("logit_kd", 0.71, 0.73, 0.72),
        *seeds("logit_kd", 0.40, 0.42, 0.41, **DEPTH_TASK),
        *seeds("singer", 0.74, 0.73, 0.75),
        *seeds("singer", 0.43, 0.43, 0.43, **DEPTH_TASK),
        *seeds("crd", 0.6, 0.6, 0.6),
        record("teacher", value=0.8, kind="teacher", student=""),
        *seeds("untrained", 0.1, 0.12, 0.11, kind="untrained"),
        record("untrained", value=None, kind="untrained", **DEPTH_TASK),
    ]


def asked() -> list[Asked]:
    """A student that failed, a seed that did, and one that has not run."""
    failed = record("vitkd").run, "at step 7: loss kd is nan"
    seed = record("crd", 3).run, "at step 9: out of memory"
    return [Asked(*failed), Asked(*seed), Asked(record("later").run, None)] + [
        Asked(record("crd", seed).run, None) for seed in range(3)
    ]


def pairs() -> list[Record]:
    """Two pairs of one teacher."""
    more = {"student": "tiny", "condition": "facade00"}
    return [
        *pair(),
        *seeds("fitnet", 0.5, 0.52, **more),
        *seeds("singer", 0.6, 0.62, **more),
        *seeds("fitnet", 0.6, 0.62, **more, **DEPTH_TASK),
        *seeds("singer", 0.55, 0.57, **more, **DEPTH_TASK),
    ]


def on(data: str, task_kind: str, metric: str, label: str, *values: float, **rest: Any) -> list[Record]:
    """Records on a data set of the paper's table."""
    unit = ("m", "down") if metric == "rmse" else ("fraction", "up")
    about = {"data": {"name": data}, "summary": f"heads on {data}"}
    options = {"teacher": L, "student": T, "protocol": about, "task": data, **rest}
    return seeds(label, *values, task_kind=task_kind, metrics={metric: unit, "other": unit}, **options)


def paper() -> list[Record]:
    """Some of the paper's Table 1, measured: one pair, without its whole fine-grained mean."""
    return [
        *on("imagenet-1k", "classification", "top1", "fitnet", 0.61, 0.62),
        *on("imagenet-1k", "classification", "top1", "singer", 0.70, 0.72),
        *on("imagenet-1k", "classification", "top1", "target_norm", 0.71, 0.73),
        *on("imagenet-1k", "classification", "top1", "teacher", 0.8, kind="teacher", student=""),
        *on("nyuv2", "depth", "rmse", "fitnet", 1.01, 1.02),
        *on("nyuv2", "depth", "rmse", "singer", 0.91, 0.92),
        *on("imagenet_r", "shifted", "top1", "singer", 0.30, 0.32),
        *on("imagenet_v2", "shifted", "top1", "singer", 0.40, 0.44),
        *on("food101", "classification", "top1", "singer", 0.70, 0.72),
        *seeds("elsewhere", 0.5, 0.6),
    ]


def boards() -> dict[str, Leaderboard]:
    """The tables that the golden files hold, by the file's name."""
    return {
        "pair": rows_and_columns(pair(), costs=True, difference="singer", asked=asked()),
        "pairs": rows_and_columns(pairs(), difference="singer", by_pair=True),
        "paper": like_paper(paper(), difference="singer"),
    }


def golden() -> dict[Path, str]:
    """Every golden file with what is to be in it."""
    return {
        GOLDEN / f"{name}.{suffix}": render(board, format, WIDTH)
        for name, board in boards().items()
        for format, suffix in SUFFIXES.items()
    }


if __name__ == "__main__":  # after a change that is meant; look at the difference
    for path, text in golden().items():
        path.write_text(text)
