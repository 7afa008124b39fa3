"""What a workspace or a publication holds of results, read and doubted: records, their items, students asked for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.records import Problem, Record, RecordError, RunInfo, read_record, read_records
from harness.seeds import content_hash
from harness.storage.items import unpacked
from leaderboard.drafts import Asked
from leaderboard.labels import clean
from leaderboard.publishing.manifest import ASKED, MERGED
from leaderboard.publishing.paths import marked
from leaderboard.render import render
from leaderboard.table import rows_and_columns
from leaderboard.write import SUFFIXES

WIDTH = 120  # characters to a line of the plain table
MOST_ITEMS = 256 << 20  # bytes of a file of items: they are read whole
MOST_CONFIGURATION = 1 << 20  # bytes
MOST_SETTINGS = 100_000  # of one configuration, each alias counted for all that it stands for
SourceId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AskedRun(_Strict):
    """A student that an experiment names; why its training failed, or None."""

    run: RunInfo
    failure: str | None


class AskedFile(_Strict):
    """asked.json: so that tables say which students failed and which seeds are missing. notes: what is not known."""

    runs: tuple[AskedRun, ...] = ()
    notes: tuple[str, ...] = ()

    def asked(self) -> list[Asked]:
        return [Asked(one.run, one.failure) for one in self.runs]


class Damaged(UserError):
    """A small file that holds something else than it should. reason: one clause."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path} is damaged: {reason}")


class Source(_Strict):
    """Where records came from: the last part of its path, and what it was."""

    name: str
    kind: str  # "publication" or "workspace"


class MergedFile(_Strict):
    """merged.json: the sources by a hash of their content, and of which of them each merged record is."""

    sources: dict[SourceId, Source] = Field(default_factory=dict)
    records: dict[str, SourceId] = Field(default_factory=dict)  # file's name -> source


def record_name(record: Record) -> str:
    """Of its file, in `records/`."""
    return f"{record.run.id}.{record.task_id}.json"


def read(root: Path) -> tuple[dict[str, Record], list[str]]:
    """The records below `root/records` by file name, and sentences about those that cannot be trusted.

    A record cannot be trusted if it is damaged, if its ids are not the hashes of what it says, or if the items that
    it names are missing or others.
    """
    found, problems = read_records(root / "records")
    faults = [f"records/{problem}" for problem in problems]
    for record in found:
        reason = unfit(record) or items_fault(root, record)
        if reason:
            faults.append(f"records/{record_name(record)}: {reason}")
    return {record_name(record): record for record in found}, sorted(faults)


def read_one(path: Path) -> Record | Problem | None:
    """The record of one file, why it is none, or None where there is no file."""
    try:
        return read_record(path)
    except FileNotFoundError:
        return None
    except RecordError as error:
        return Problem(path, error.reason)
    except RecursionError:
        return Problem(path, "nested too deeply")
    except OSError as error:
        return Problem(path, f"cannot be read ({error.strerror})")


def unfit(record: Record) -> str | None:
    """Why its ids are not those of what it says, or None. What a path was taken out of can no longer be told."""
    run = record.run
    if record.origin == "reported":
        return None
    if run.kind == "student":
        said: Any = run.spec
    else:
        said = {"kind": run.kind, "seed": run.seed, "condition": run.condition}
    if not marked(run.spec) and content_hash(said) != run.id:
        return "its run id is not the hash of its specification, so one of them was changed"
    if run.spec.get("seed", run.seed) != run.seed:
        return f"its seed is {run.seed} and its specification's is {run.spec['seed']}"
    own = {key: value for key, value in run.hyperparameters.items() if not key.startswith("teacher.")}
    if not marked([own, run.spec]) and run.spec.get("hyperparameters", own) != own:
        return "its hyperparameters are not those of its specification"
    if not marked(record.protocol) and content_hash({"task": record.task_kind, **record.protocol}) != record.task_id:
        return "its task id is not the hash of its protocol, so one of them was changed"
    return None


def items_fault(root: Path, record: Record) -> str | None:
    """Why the items that a record names cannot be trusted, or None: they are to make the values that it says."""
    if record.items is None:
        return None
    path = root / "items" / record.items.file
    try:
        if path.stat().st_size > MOST_ITEMS:
            return f"items/{path.name}, which it names, is too large"
        data = path.read_bytes()
    except FileNotFoundError:
        return f"items/{path.name}, which it names, is missing"
    except OSError as error:
        return f"items/{path.name}, which it names, cannot be read ({error.strerror})"
    if hashlib.sha256(data).hexdigest() != record.items.sha256:
        return f"items/{path.name} is not the one that it names"
    try:
        items = unpacked(data, record.items)
    except ValueError as error:
        return f"items/{path.name} is not what it says: {error}"
    for metric in items.metrics:
        said = record.values[metric]
        if (made := items.contradiction(metric, said)) is not None:
            return f"its values.{metric} is {said:g}, and items/{path.name} makes {made:g} of it"
    return None


def configuration(path: Path) -> dict[str, Any]:
    """The plain values of a configuration, which may be a stranger's.

    Raises:
        ValueError: a clause on why it is none: not YAML, or so large, deep or repeated by aliases that nobody means it.
    """
    try:
        data = path.read_bytes()
        if len(data) > MOST_CONFIGURATION:
            raise ValueError(f"it has more than {MOST_CONFIGURATION} bytes")
        loader = yaml.SafeLoader(data.decode())
        node = loader.get_single_node()
        if _is_endless(node):  # asked of the nodes: merge keys would grow when values are made of them
            raise ValueError(f"it has more than {MOST_SETTINGS} settings")
        plain = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(plain, dict):
        raise ValueError("it is no configuration")
    return plain


def _is_endless(node: yaml.Node | None) -> bool:
    waiting: list[Any] = [node]
    count = 0
    while waiting and count <= MOST_SETTINGS:
        one = waiting.pop()
        count += 1
        if isinstance(one, yaml.MappingNode):
            waiting += [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            waiting += one.value
    return count > MOST_SETTINGS


def read_asked(folder: Path) -> AskedFile:
    """asked.json of a folder; nothing asked for where there is none. Raises Damaged."""
    return _small(folder / ASKED, AskedFile)


def read_merged(folder: Path) -> MergedFile:
    """merged.json of a folder; nothing merged where there is none. Raises Damaged."""
    return _small(folder / MERGED, MergedFile)


def _small(path: Path, kind: type[Any]) -> Any:
    try:
        return kind.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = clean(".".join(map(str, first["loc"])))
        raise Damaged(path, f"{place}: {first['msg']}") from None
    except RecursionError:
        raise Damaged(path, "nested too deeply") from None
    except (ValueError, OSError) as error:
        raise Damaged(path, str(error)) from None


def plain_text(value: BaseModel) -> str:
    """As its file has it."""
    return json.dumps(value.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def tables(records: Iterable[Record], asked: AskedFile) -> dict[str, str]:
    """The leaderboard of these records in every format, all metrics and costs: file's name -> text."""
    board = rows_and_columns(records, metrics="all", costs=True, asked=asked.asked(), notes=asked.notes)
    return {f"tables/leaderboard.{SUFFIXES[format]}": render(board, format, WIDTH) for format in SUFFIXES}


def numbers(table: str) -> Any:
    """What a table in JSON says in numbers, whatever else another version of the program puts beside them."""
    found = json.loads(table)
    return [
        [
            [section[key] for key in ("teacher", "student", "data", "condition")],
            [[column[key] for key in ("task_id", "metric", "unit", "direction")] for column in section["columns"]],
            [
                [row["label"], row["kind"], row["runs"], row["average_rank"], [_cell(cell) for cell in row["cells"]]]
                for row in section["rows"]
            ],
        ]
        for section in found["sections"]
    ]


def _cell(cell: Any) -> Any:
    return None if cell is None else [cell[key] for key in ("mean", "spread", "n")]


def words_in(texts: Iterable[tuple[str, str]], words: Sequence[str]) -> list[str]:
    """Sentences about files that hold one of these words, such as the user's name, or are called by it."""
    texts = list(texts)
    said = []
    for word in words:
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        held = [name for name, text in texts if whole.search(text) or whole.search(name)]
        if held:
            more = f" and {len(held) - 1} more" if len(held) > 1 else ""
            said.append(f"the word {word!r} of this machine is in {held[0]}{more}; look whether it may be told")
    return said
