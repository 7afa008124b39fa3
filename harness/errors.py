"""The user's mistakes: one clear sentence each, the nearest valid value, the remedy. Exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if len(names) > 40:  # a list that nobody reads to its end
        close = difflib.get_close_matches(str(value), names, n=8, cutoff=0.3)
        return f"no {kind} {value!r}{hint} {len(names)} are known, the nearest: {', '.join(close) or '(none)'}"
    return f"no {kind} {value!r}{hint} Known: {', '.join(names) or '(none)'}"
