"""Where an encoder came from, as a task may ask: its teacher, that teacher without artifacts, its method."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from harness.api import Method, Vit


@dataclasses.dataclass(frozen=True)
class Reference:
    """Each part is built at its first reading: a task that does not ask does not pay.

    Args:
        make_teacher: the run's own teacher, with what is planted onto it and what repairs it; for the teacher's own
            row the teacher itself, for an untrained student the experiment's.
        make_clean: the same model with planted artifacts of size 0 and without repairs, which is what a repair should
            come to; None where none are planted.
        make_method: the run's trained method, frozen, for that teacher; None for bounds.
    """

    make_teacher: Callable[[], Vit]
    make_clean: Callable[[], Vit] | None = None
    make_method: Callable[[Vit], Method] | None = None

    @functools.cached_property
    def teacher(self) -> Vit:
        return self.make_teacher()

    @functools.cached_property
    def clean(self) -> Vit | None:
        return None if self.make_clean is None else self.make_clean()

    @functools.cached_property
    def method(self) -> Method | None:
        return None if self.make_method is None else self.make_method(self.teacher)

    @classmethod
    def of(cls, teacher: Vit, clean: Vit | None = None, method: Method | None = None) -> Reference:
        """Of what is there already, for tests and `Task.tiny`."""
        return cls(
            lambda: teacher,
            None if clean is None else lambda: clean,
            None if method is None else lambda _: method,
        )
