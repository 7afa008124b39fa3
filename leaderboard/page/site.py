"""The page's files: written so that a browser finds the old page or the new one whole, and nothing else is touched.

Files are named by their content; index.html names them and is replaced last. What the page before named stays while
that one may be open. Whatever records hold reaches a browser as JSON inside a string or a block of data: never as
markup, never as a program.
"""

from __future__ import annotations

import hashlib
import html
import importlib.resources
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records import write_atomic
from leaderboard.page.content import Content, Picture

SCRIPTS = (
    "vendor/dataTables.min.js",
    "vendor/chart.umd.min.js",
    "static/page.js",
    "static/board.js",
    "static/details.js",
    "static/charts.js",
    "static/downloads.js",
    "static/start.js",
)
STYLES = ("static/page.css",)
MARKER = "page.json"  # in the folder of a page: which files are its own
GENERATOR = b'<meta name="generator" content="singer-bench">'  # in index.html
_OWN = re.compile(r"(assets|details|pictures)/[A-Za-z0-9_-][A-Za-z0-9._-]*")
_HOLE = re.compile(r"\{\{(\w+)\}\}")


def script_json(value: Any) -> str:
    """JSON that means the same inside a <script>, whatever strings it holds.

    >>> script_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def write_site(
    folder: Path,
    content: Content,
    pictures: Mapping[str, Sequence[Picture]],
    live: bool,
) -> Path:
    """Make the page in a folder, or replace the one there; returns the path of its index.html.

    Args:
        pictures: by run id. live: whether it may look for a newer one.

    Raises:
        UserError: the folder cannot be written into, or holds something that is no page.
    """
    check_folder(folder)
    files: dict[str, bytes] = {}
    places = [_detail(detail, pictures, files) for detail in content.details]
    sections = []
    for section, diagram in zip(content.board["sections"], content.diagrams, strict=True):
        rows = [{**row, "detail": places[row["detail"]]} for row in section["rows"]]
        shown = None if diagram is None else _picture(diagram, files)
        sections.append({**section, "rows": rows, "diagram": shown})
    board = script_json({**content.board, "sections": sections})
    assets = [_asset(name, files) for name in (*SCRIPTS, *STYLES)]
    stamp = hashlib.sha256("".join([board, *assets]).encode()).hexdigest()[:16]
    index = _index(content.board["title"], board, stamp if live else "", assets)
    try:
        return _write(folder, files, index, stamp)
    except OSError as error:
        raise UserError(f"cannot write the page into {str(folder)!r}: {error.strerror}; choose another -o") from error


def check_folder(folder: Path) -> None:
    """Raises UserError unless it is a page's folder, an empty one, or none yet."""
    if folder.is_dir():
        others = [name for name in os.listdir(folder) if not name.startswith(".")]
        if others and (MARKER not in others or not _is_page(folder / "index.html")):
            raise UserError(f"{str(folder)!r} is not empty and holds no page; name a new folder with -o")
    elif folder.exists():
        raise UserError(f"{str(folder)!r} is a file; name a folder with -o")


def _is_page(index: Path) -> bool:
    """Whether a page is there, or none yet because the first one was interrupted: page.json is a common name."""
    try:
        return GENERATOR in index.read_bytes()[:2000]
    except FileNotFoundError:
        return True


def _write(folder: Path, files: Mapping[str, bytes], index: str, stamp: str) -> Path:
    now, before = _own(folder, "files"), _own(folder, "before")
    _mark(folder, set(files), now | before)  # first, so that nothing is forgotten if this is interrupted
    for name, data in files.items():
        _put(folder / name, data)
    path = write_atomic(folder / "index.html", index)
    write_atomic(folder / "stamp.js", f'bench.newest("{stamp}");\n')
    kept = now if now != set(files) else before
    for name in before - kept - set(files):
        (folder / name).unlink(missing_ok=True)
    _mark(folder, set(files), kept)
    return path


def _mark(folder: Path, files: set[str], before: set[str]) -> None:
    write_atomic(folder / MARKER, json.dumps({"files": sorted(files), "before": sorted(before)}, indent=1) + "\n")


def _own(folder: Path, key: str) -> set[str]:
    """Files that the marker names. Only such names as a page's files have: the marker may be anybody's."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    names = found if isinstance(found, list) else []
    return {name for name in names if isinstance(name, str) and _OWN.fullmatch(name)}


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all; a file that is there already keeps its time."""
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _detail(detail: Mapping[str, Any], pictures: Mapping[str, Sequence[Picture]], files: dict[str, bytes]) -> str:
    """A row's file: a call with a string, whose name is the hash of it."""
    runs = [
        {**run, "pictures": [_picture(picture, files) for picture in pictures.get(run["id"], ())]}
        for run in detail["runs"]
    ]
    text = script_json({**detail, "runs": runs})
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    files[f"details/{name}.js"] = f'bench.detail("{name}",{script_json(text)});\n'.encode()
    return name


def _picture(picture: Picture, files: dict[str, bytes]) -> dict[str, str]:
    suffix = "png" if picture.data.startswith(b"\x89PNG") else "svg"
    name = f"pictures/{hashlib.sha256(picture.data).hexdigest()[:16]}.{suffix}"
    files[name] = picture.data
    return {"kind": picture.kind, "text": picture.text, "file": name}


def _asset(name: str, files: dict[str, bytes]) -> str:
    data = importlib.resources.files("leaderboard.page").joinpath(name).read_bytes()
    stem, _, suffix = name.rpartition("/")[2].rpartition(".")
    place = f"assets/{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{suffix}"
    files[place] = data
    return place


def _index(title: str, board: str, stamp: str, assets: Sequence[str]) -> str:
    scripts = "\n".join(f'<script src="{name}"></script>' for name in assets if name.endswith(".js"))
    styles = "\n".join(f'<link rel="stylesheet" href="{name}">' for name in assets if name.endswith(".css"))
    holes = {"title": html.escape(title), "board": board, "stamp": stamp, "scripts": scripts, "styles": styles}
    template = importlib.resources.files("leaderboard.page").joinpath("static/index.html").read_text(encoding="utf-8")
    return _HOLE.sub(lambda hole: holes[hole[1]], template)
