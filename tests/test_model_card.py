"""The card of an exported student: what the hub reads in front, what people read below, whatever the names are."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from publications import PATH, named
from test_cli import call, started, train, workspace
from test_leaderboard import DEPTH, record

from harness.records import Cost, Record, RunInfo, write_record
from harness.runs import student_runs
from leaderboard.publishing.card import LICENSE, model_card

GOLDEN = Path(__file__).parent / "golden_card.md"
TEACHER = {"model": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "pretrained": False, "checkpoint": "ab" * 32}
COST = Cost(steps=350, images_seen=22_400, own_s=12.34, student_parameters=126_351)


def measured(label: str = "masked", **changes) -> list[Record]:
    """One student on two tasks that rank and one that describes it."""
    about = {"data": {"name": "tiny-imagenet"}, "summary": "a linear head, chosen on a held-out tenth"}
    options = {"teacher": TEACHER["model"], "student": "ViT 48x4", "hyperparameters": {"rank": 64}, **changes}
    first = record(label, 1, 0.70123, second=0.9, protocol=about, task_kind="classification", **options)
    depth = record(label, 1, 0.912345, task="depth", metrics=DEPTH, task_kind="depth", **options)
    described = record(label, 1, 0.02, task="artifacts", task_kind="artifacts", **options)
    metrics = {name: info.model_copy(update={"ranked": False}) for name, info in described.metrics.items()}
    described = described.model_copy(update={"metrics": metrics})
    return [named(one, teacher=TEACHER) for one in (described, depth, first)]


def card(records: list[Record], **options) -> str:
    said = {"name": "my-student", "head_trained": False, "cite": "Ada 2025, arXiv 2509.20986", "does": "Masks norms."}
    return model_card(records[0].run, COST, records, **{**said, "versions": {"timm": "1.0"}, **options})


def front(text: str) -> dict:
    from huggingface_hub import ModelCard

    plain = yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert ModelCard(text).data.to_dict() == plain  # as the hub's own library reads it
    return plain


def test_the_card_is_the_golden_one():
    assert card(measured()) == GOLDEN.read_text()


def test_what_the_hub_reads_is_what_the_records_say():
    found = front(card(measured()))
    assert (found["library_name"], found["license"], found["license_name"]) == ("timm", "other", LICENSE)
    assert "base_model" not in found and found["datasets"] == ["scenes"]
    (index,) = found["model-index"]
    assert index["name"] == "my-student" and len(index["results"]) == 2  # what only describes is no result
    values = {metric["type"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.70123, "top5": 0.9, "rmse": 0.912345}
    assert found["metrics"] == sorted(values)


NAME = TEACHER["model"]
TWIN = "vit_tiny_patch16_reg.dino"


@pytest.mark.parametrize(
    ("teacher", "base"),
    [
        ({"model": NAME, "pretrained": True}, NAME),
        ({"model": NAME, "pretrained": False}, None),  # fresh
        ({"model": NAME, "pretrained": False, "checkpoint": "ab" * 32}, None),  # a file may hold anything
        ({"model": NAME, "pretrained": True, "register_teacher": None}, NAME),
        ({"model": NAME, "pretrained": True, "register_teacher": {"model": TWIN, "pretrained": None}}, TWIN),
        ({"model": NAME, "pretrained": True, "register_teacher": {"model": None, "pretrained": None}}, None),
        ({"model": NAME, "pretrained": True, "register_teacher": {"model": TWIN, "pretrained": False}}, None),
        ({"model": NAME, "pretrained": False, "register_teacher": {"model": TWIN, "checkpoint": "ab" * 32}}, None),
        *[
            ({"model": model, "pretrained": True}, None)
            for model in (None, "local-dir:/home/lovelace/x", "vit_tiny_patch16_224", "a/b.c", 7)
        ],
    ],
)
def test_only_a_teacher_whose_weights_are_the_hubs_is_a_base_model(teacher, base):
    one = measured()[0]
    run = one.run.model_copy(update={"spec": {"teacher": teacher}})
    found = front(card([one.model_copy(update={"run": run})]))
    assert found.get("base_model") == (None if base is None else f"timm/{base}")


def test_a_student_without_records_says_so():
    run = measured()[0].run
    text = model_card(run, Cost(), [], name="x", head_trained=True)
    assert "model-index" not in front(text) and "has not been measured" in text and "logits = model" in text


def test_records_of_another_run_are_not_its_results():
    mine, theirs = measured(), measured("another")
    assert card([*mine, *theirs]) == card(mine)


def test_no_path_of_the_machine_is_in_it():
    one = measured(hyperparameters={"file": f"{PATH}/x.csv"})
    text = card(one)
    assert "lovelace" not in text and "(path)/x.csv" in text


HOSTILE = [
    "a\n---\nlicense: mit\n---\n",
    '"quoted": {a: b}',
    "<script>alert(1)</script>",
    "| a | b |",
    "!!python/object:os.system",
    "*bold* [link](javascript:x) `code`",
    "&anchor *alias",
    "{{ jinja }} {% x %}",
    "\u2028\u202e\x00\x1b[31m",
    "'",
    "- x",
    "# x",
    "null",
    "7",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_names(name):
    records = [
        one.model_copy(
            update={
                "task": name,
                "run": one.run.model_copy(
                    update={"label": name, "method": name, "data": name, "student": name, "teacher": name}
                ),
            }
        )
        for one in measured()
    ]
    text = card(records, name=name, cite=name, does=name, versions={name: name})
    found = front(text)
    assert found["license_name"] == LICENSE and len(found["model-index"][0]["results"]) == 2
    body = text.split("\n---\n", 1)[1]
    assert "<script" not in body and not re.search(r"(?<!\\)\]\(javascript", body)
    assert "\x1b" not in text and "\u2028" not in text
    headings = [line for line in body.split("\n") if line.startswith("#")]
    assert [line for line in headings if line.startswith("## ")] == [
        f"## {name}" for name in ("Method", "Training", "Results", "Use", "Limits")
    ]
    assert len(headings) == 6


WRITABLE = st.text(st.characters(codec="utf-8"))  # a record holds no other


@given(WRITABLE, WRITABLE)
def test_any_name_gives_yaml_that_reads_back(label, name):
    one = measured()[0]
    run = one.run.model_copy(update={"label": label, "method": label, "data": name})
    text = card([one.model_copy(update={"run": run, "task": name})], name=name)
    assert front(text)["library_name"] == "timm"


def test_export_writes_the_card_of_its_workspace(call, workspace, tmp_path):
    run = student_runs(started(workspace))[0]
    train(run, workspace)
    (one, *_) = measured()
    write_record(workspace.records, one.model_copy(update={"run": run.info, "task": "mine"}))
    damaged = workspace.records / f"{run.id}.x.json"
    damaged.write_text("{")
    code, out, _ = call("export", workspace.student(run.id), "-o", tmp_path / "out")
    assert code == 0 and f"not in the model card: {damaged}" in out
    text = (tmp_path / "out" / "README.md").read_text()
    assert "mine" in text and front(text)["tags"][-1] == run.info.method
    (workspace.student(run.id) / "run.yaml").unlink()
    call("export", workspace.student(run.id), "-o", tmp_path / "bare")
    assert not (tmp_path / "bare" / "README.md").exists()


if __name__ == "__main__":  # after a change that is meant; look at the difference
    GOLDEN.write_text(card(measured()))
