"""Suites: tasks on published data sets, a YAML file each, with where the data are and what must be there. No torch.

`tasks: [{suite: food101, root: DIR}]` in an experiment stands for what configs/tasks/food101.yaml says, with the
entry's other keys laid over it. `about:` is for people and for `singer-bench data check`; it decides no number.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from harness.errors import ConfigError, UserError, unknown
from harness.parsing.sentences import sentences
from harness.parsing.yaml_files import merge, read_yaml
from harness.specs import Count, DataSpec, Options, Strict, TaskSpec, as_tuple

HELD_FOR_PLACE = {"task": "classification"}  # so that a suite with a mistake leaves the other items' numbers alone


class Counts(Strict):
    """What a split holds as published: images, and classes of its labels or of its masks."""

    images: Count
    classes: Count | None = None


class SplitCounts(Strict):
    """By part, whatever the data call their splits."""

    train: Counts | None = None
    test: Counts | None = None


class About(Strict):
    """What a person needs to get the data. where: the URL of the data's own page. layout: lines about the root."""

    title: str
    where: str
    licence: str
    layout: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    counts: SplitCounts = SplitCounts()


class Suite(Strict):
    """One file: a task with its data, and about these."""

    task: str
    label: str | None = None
    data: DataSpec
    options: Options = Field(default_factory=dict)
    about: About


def shipped_suites() -> dict[str, Path]:
    """Name -> file of every suite that comes with the package, in alphabetical order."""
    with importlib.resources.as_file(importlib.resources.files("configs") / "tasks") as folder:
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def suite_file(name: str) -> Path:
    """The file behind a name; a name with a folder or ending in .yaml is a file's own path.

    Raises:
        UserError: no such suite; names the nearest one.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = shipped_suites()
    if name not in known:
        raise UserError(unknown("suite", name, known) + "; or give a YAML file's path")
    return known[name]


def read_suite(name: str) -> dict[str, Any]:
    """A suite's file as plain values, with a label, after checking their form.

    Raises:
        UserError: no such suite, a file that cannot be read. ConfigError: every mistake in it.
    """
    path = suite_file(name)
    raw = read_yaml(path)
    parse_suite(raw, str(path))
    return {**raw, "label": raw.get("label") or path.stem}


def parse_suite(raw: Mapping[str, Any], where: str) -> Suite:
    """Plain values -> Suite. Raises ConfigError with every mistake of form."""
    try:
        return Suite.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(sentences(error, Suite), where) from error


def expanded(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """An experiment's plain values, every `suite:` among its tasks replaced by what it stands for; the mistakes."""
    tasks, mistakes = raw.get("tasks"), []
    if not isinstance(tasks, list | tuple):
        return dict(raw), []  # refused later, in words
    found: list[Any] = []
    for i, item in enumerate(tasks):
        if not isinstance(item, dict) or "suite" not in item:
            found.append(item)
            continue
        try:
            found.append(_entry(item, raw.get("data")))
        except ConfigError as error:
            where = f"{error.where}: " if error.where else ""
            mistakes += [f"tasks.{i}: {where}{mistake}" for mistake in error.mistakes]
            found.append({**HELD_FOR_PLACE, "label": f"tasks.{i}"})
        except UserError as error:
            mistakes.append(f"tasks.{i}: {error}")
            found.append({**HELD_FOR_PLACE, "label": f"tasks.{i}"})
    return {**raw, "tasks": found}, mistakes


def _entry(item: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """The task that an item with a suite stands for. data: the experiment's, whose image size it shares by default.

    A root may be missing, as in any data: a configuration that is shipped leaves it to `--set tasks.0.root=DIR`.
    """
    above = {key: value for key, value in item.items() if key not in ("suite", "root")}
    if not isinstance(item["suite"], str):
        raise ConfigError([f"suite must be the name of a suite or a YAML file, not {item['suite']!r}"])
    if strange := [key for key in above if key not in TaskSpec.model_fields]:
        known = {*TaskSpec.model_fields, "suite", "root"}
        raise ConfigError([unknown("setting", key, known) for key in strange])
    if "root" in item and not isinstance(item["root"], str):
        raise ConfigError([f"root must be text, the folder of the data, not {item['root']!r}"])
    below = read_suite(item["suite"])
    del below["about"]
    if isinstance(data, dict) and "image_size" in data and "image_size" not in below["data"]:
        below["data"] = {**below["data"], "image_size": data["image_size"]}
    found = overridden(below, above)
    if not isinstance(found["data"], dict):
        return found  # refused later, in words
    if "root" in item:
        found["data"] = {**found["data"], "root": item["root"]}
    return found


def overridden(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over a suite's values; the options of a task or source that is replaced are not carried over."""
    below = dict(below)
    if above.get("task", below.get("task")) != below.get("task"):
        below.pop("options", None)
    data, mine = below.get("data"), above.get("data")
    if isinstance(data, dict) and isinstance(mine, dict) and mine.get("source", data.get("source")) != data["source"]:
        below["data"] = {key: value for key, value in data.items() if key != "options"}
    return merge(below, above)
