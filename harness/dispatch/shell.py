"""Lines of bash that come before Python in a job. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def strict(lines: Sequence[str]) -> list[str]:
    """The lines, of which none may fail: the shell ends at one that does, and says which one that was."""
    # Many programs fail without a word, and `set -e` has none of its own.
    return [
        "set -e",
        "trap 'echo \"this line of the job failed: $BASH_COMMAND\" >&2' ERR",
        *lines,
        "trap - ERR",
        "set +e",
    ]
