"""Blocks of models compiled for the steps of a training, and eager again where they cannot be compiled.

One block at a time: blocks of the same shape share one compiled graph, a training that stops at the last layer that is
read still does, and what a method does between blocks stays as it is written. Outside of `Compiled.inside` every block
is as it was, so that a teacher that several trainings and evaluations share is never compiled in the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import nn

SETTINGS = {
    "force_non_lazy_backward_lowering": True,  # else it is compiled when it first runs: too late for another try
    "backward_pass_autocast": "off",  # a training step leaves autocast before it goes backward
}


class Compiled:
    """Blocks with a compiled forward, which is made at its first call.

    What fails compiled and works eager is the compiler's failure (no C++ compiler, an operation that it does not know):
    from then on every block is eager. What fails both ways is an error like any other.

    Args:
        blocks: to be compiled. say: hears of a failure, once.

    Attributes:
        failure: why blocks are eager, in one line; None while none has failed.
    """

    def __init__(self, blocks: Iterable[nn.Module], say: Callable[[str], None]) -> None:
        self.say = say
        self.failure: str | None = None
        # Not every torch since 2.6 knows each of them.
        self._settings = functorch.patch({k: v for k, v in SETTINGS.items() if hasattr(functorch, k)})
        self._forwards = {block: self._either(block.forward) for block in blocks}

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Inside, the blocks are compiled."""
        if not self._forwards:
            yield
            return
        for block, forward in self._forwards.items():
            block.forward = forward
        try:
            with self._settings:
                yield
        finally:
            for block in self._forwards:
                del block.forward  # the instance's; its class has the eager one

    def _either(self, eager: Callable[..., Any]) -> Callable[..., Any]:
        compiled = torch.compile(eager)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.failure is not None:
                return eager(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                found = eager(*args, **kwargs)
                self._give_up(error)
                return found

        return forward

    def _give_up(self, error: Exception) -> None:
        words = str(error).split("\n\n")[0].split()[:40]  # what follows is how to report it to torch
        self.failure = f"{type(error).__name__}: {' '.join(words)}"
        self.say(f"torch.compile has failed, and training goes on without it ({self.failure})")
