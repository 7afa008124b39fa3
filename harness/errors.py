"""The user's mistakes: one clear sentence each, the nearest valid value, the remedy. Exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend: a value, a file, data, a checkpoint.

    The command line prints the message without a traceback and exits with code 2.
    """


class ConfigError(UserError):
    """One or more mistakes in a configuration, all of them at once.

    Args:
        mistakes: one sentence each.
        where: what was being read (a file's name), put in front.
    """

    def __init__(self, mistakes: Iterable[str], where: str = "") -> None:
        self.mistakes = list(mistakes)
        self.where = where
        head = f"{where}: " if where else ""
        if len(self.mistakes) == 1:
            text = head + self.mistakes[0]
        else:
            text = f"{head}{len(self.mistakes)} mistakes:\n" + "\n".join(f"  - {m}" for m in self.mistakes)
        super().__init__(text)


def unknown(kind: str, value: object, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: names it, the nearest one, and the list.

    >>> unknown("method", "singr", ["singer", "fitnet"])
    "no method 'singr'; did you mean 'singer'? Known: fitnet, singer"
    """
    names = sorted(known)
    close = _nearest(str(value), names)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if len(names) > 40:  # a list that nobody reads to its end
        far = _nearest(str(value), names, count=8, cutoff=0.3)
        return f"no {kind} {value!r}{hint} {len(names)} are known, the nearest: {', '.join(far) or '(none)'}"
    return f"no {kind} {value!r}{hint} Known: {', '.join(names) or '(none)'}"


def no_file(kind: str, path: Path, pattern: str = "*") -> str:
    """The sentence for a file that does not exist: names it, the nearest one beside it, and the folder.

    Args:
        kind: what it should have been, such as "configuration file". pattern: which neighbours can be meant.
    """
    if not path.parent.is_dir():
        return f"no {kind} {str(path)!r}: its folder does not exist"
    near = [p.name for p in path.parent.glob(pattern) if p.is_file()]
    return f"{unknown(kind, path.name, near)} (in {path.parent})"


def _nearest(value: str, names: list[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """The most similar names, however they are capitalised and with - for _: SiNGER is near singer."""
    written = {_folded(name): name for name in names}
    return [written[near] for near in difflib.get_close_matches(_folded(value), written, n=count, cutoff=cutoff)]


def _folded(name: str) -> str:
    return name.casefold().replace("-", "_")
