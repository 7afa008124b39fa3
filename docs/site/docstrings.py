"""Our docstrings as griffe reads them: several names share a line or a text, `step: of it. seed, id: of the run.`"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^( *)(Args|Attributes|Raises):\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)
ITEM = re.compile(
    r"(?:^|(?<=\. )|(?<=\.\) ))(?!None\b|True\b|False\b)(\*{0,2}[A-Za-z_][\w.]*(?:, \*{0,2}[A-Za-z_][\w.]*)*): "
)


class SeveralNames(griffe.Extension):
    """Gives each name of a section a line of its own."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(_apart, obj.docstring.value + "\n").rstrip("\n")


def _apart(section: re.Match[str]) -> str:
    indent, title, body = section.groups()
    _, *found = ITEM.split(" ".join(body.split()))
    lines = [
        f"{indent}    {name.strip()}: {text.strip()}\n"
        for names, text in zip(found[::2], found[1::2], strict=True)
        for name in names.split(",")
    ]
    return f"{indent}{title}:\n{''.join(lines)}\n"
