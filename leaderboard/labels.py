"""Names as the table shows them: cleaned, short, and no two different things under one name."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)

DASH = "\u2013"  # an en dash, where there is no number
MINUS = "\u2212"
SHORT = 6  # hex digits of a hash that people are shown; more where these do not tell two apart
_INVISIBLE = {"Cc", "Cf", "Cs", "Co"}
LONGEST_VALUE = 32  # characters of a hyperparameter's value in a row's name; longer ones are told apart by a hash


def clean(name: str) -> str:
    """One line of visible text: control, format and private characters go, any white space is one space.

    >>> clean("a\\n\\t b\\u202e")
    'a b'
    """
    if not (name.isascii() and name.isprintable()):
        name = "".join(" " if c.isspace() else "" if unicodedata.category(c) in _INVISIBLE else c for c in name)
    return " ".join(name.split()) or "(no name)"


def short_hashes(hashes: Collection[str]) -> dict[str, str]:
    """Each hash's first digits, equally many for all, so many that different hashes stay different.

    >>> short_hashes(["abcdef01", "abcdef02"])
    {'abcdef01': 'abcdef01', 'abcdef02': 'abcdef02'}
    """
    distinct = sorted(set(hashes))
    length = SHORT
    while len({h[:length] for h in distinct}) < len(distinct):
        length += 1
    return {h: h[:length] for h in distinct}


def _value(value: Any) -> str:
    return clean(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def differing(hyperparameters: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names whose values are not the same in all of them; an absent one differs from any value."""
    names = sorted({name for mapping in hyperparameters for name in mapping})
    return [n for n in names if len({_value(m[n]) if n in m else None for m in hyperparameters}) > 1]


def _with_hyperparameters(label: str, mapping: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = [f"{clean(n)}={_value(mapping[n])}" if n in mapping else f"{clean(n)} unset" for n in names]
    return f"{label} ({', '.join(parts)})"


def unique_labels(rows: Mapping[Key, tuple[str, Mapping[str, Any], str]]) -> dict[Key, str]:
    """A label for each row, different for different rows, whatever their order.

    Args:
        rows: key -> (the label it was given, its hyperparameters, the hash of its identity).

    Rows of one label are told apart by the hyperparameters in which they differ, `singer (rank=8)`, and by a
    short hash, `singer [1a2b3c]`, where none does or where a value is too long to be read.
    """
    labels = {key: clean(label) for key, (label, _, _) in rows.items()}
    groups: dict[str, list[Key]] = {}
    for key, label in labels.items():
        groups.setdefault(label, []).append(key)
    for label, keys in groups.items():
        names = differing([rows[k][1] for k in keys]) if len(keys) > 1 else []
        if names and all(len(_value(rows[k][1].get(n))) <= LONGEST_VALUE for k in keys for n in names):
            labels.update({k: _with_hyperparameters(label, rows[k][1], names) for k in keys})
    counts = Counter(labels.values())
    short = short_hashes([identity for _, _, identity in rows.values()])
    return {k: label if counts[label] == 1 else f"{label} [{short[rows[k][2]]}]" for k, label in labels.items()}
