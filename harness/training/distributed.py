"""Several processes that train and encode as one: who is which, what they agree on, what they exchange.

Nothing else talks to torch.distributed. Tensors travel by NCCL between GPUs and by gloo between CPUs; what the
processes have to agree on (has somebody failed, shall we stop) travels by gloo alone, so that no GPU is waited for. A
process that is gone or does not answer is one clear error in all others, never a silent wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UserError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_S = 900.0  # a checkpoint on a slow disk takes minutes, and the others wait for it
GRACE_S = 3.0  # a scheduler's signal reaches all processes, though not at the same moment


class RankLost(UserError):
    """Another process of this job has ended, does not answer, or is at another place than this one."""


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects the processes: a group for agreements, and the store by which they found each other."""

    control: Any
    store: Any


@dataclasses.dataclass(frozen=True)
class Ranks:
    """One process among those of its job.

    With one process every method gives its argument back, and nothing is ever started.

    Attributes:
        rank: 0 .. world - 1; rank 0 decides and writes. local_rank: on this machine, which is its GPU's number.
        world: how many there are.
    """

    rank: int
    local_rank: int
    world: int
    link: Link | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    def part(self, count: int) -> int:
        """How many of `count` images each rank takes. Raises UserError where they cannot be divided equally."""
        if count % self.world:
            below = count // self.world * self.world
            sizes = f"{below} or {below + self.world}" if below else str(self.world)
            raise UserError(
                f"training.batch_size is {count}, the images of a step on all {self.world} ranks together, and cannot "
                f"be divided among them; the nearest that can is {sizes}. Or run on another number of ranks"
            )
        return count // self.world

    # Agreements, on the CPU.

    def sums(self, *numbers: int) -> tuple[int, ...]:
        """The sum over all ranks of each number."""
        if self.alone:
            return numbers
        found = torch.tensor(numbers, dtype=torch.int64)
        with self.linked():
            dist.all_reduce(found, group=self._link.control)
        return tuple(found.tolist())

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sums(int(flag))[0] > 0

    def of_each(self, number: int) -> tuple[int, ...]:
        """Every rank's number, in their order."""
        return self.sums(*(number if rank == self.rank else 0 for rank in range(self.world)))

    @contextlib.contextmanager
    def together(
        self, described: Callable[[Exception], str] = str, told: Callable[[str], Exception] = UserError
    ) -> Iterator[None]:
        """All ranks do this at the same time; where it fails on one, it fails on all of them.

        Args:
            described: an exception in the words that the other ranks are told. told: what they raise, of these words.
        """
        if self.alone:
            yield
            return
        error = None
        try:
            yield
        except RankLost:
            raise
        except Exception as raised:
            error = raised
        if not self.any(error is not None):
            return
        said: list[str | None] = [None] * self.world
        with self.linked():
            dist.all_gather_object(said, None if error is None else described(error), group=self._link.control)
        if error is not None:
            raise error
        rank = next(rank for rank, words in enumerate(said) if words is not None)
        raise told(f"on rank {rank}: {said[rank]}")

    def shared(self, value: Any) -> Any:
        """Rank 0's value on every rank, whatever it is made of; tensors arrive on the CPU."""
        if self.alone:
            return value
        buffer = io.BytesIO()
        if self.first:
            torch.save(value, buffer)
        held = [buffer.getvalue()]
        with self.linked():
            dist.broadcast_object_list(held, src=0, group=self._link.control)
        # Not a file of unknown origin: another process of this program has just written it.
        return value if self.first else torch.load(io.BytesIO(held[0]), map_location="cpu", weights_only=False)

    # Tensors, on the device.

    def gathered(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """All ranks' rows, in the ranks' order: [counts[rank], ...] -> [sum of counts, ...].

        Every rank must then compute the same loss from it. The gradient of this rank's rows is world times its part of
        that loss's, so that the mean over ranks is the gradient of the loss.
        """
        return tensor if self.alone else _Gathered.apply(tensor, self, tuple(counts))  # type: ignore[return-value]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes its mean over all ranks, in place."""
        if self.alone:
            return
        with self.linked():
            for tensor in tensors:
                dist.all_reduce(tensor.div_(self.world))

    def averaging(self, parameters: Iterable[nn.Parameter]) -> Callable[[Tensor], Tensor]:
        """torch's DistributedDataParallel over exactly these parameters.

        The function returned takes a loss; the next backward pass from what it gives averages their gradients over
        all ranks while it goes on, and must reach each of them. It is done as long as the function lives.
        """
        return DistributedDataParallel(_Shell(parameters), init_sync=False)  # they are the same already

    def left(self) -> None:
        """End the connection. Called by all ranks when everything is done."""
        if not self.alone:
            with self.linked():
                dist.barrier(group=self._link.control)
            dist.destroy_process_group()

    @property
    def _link(self) -> Link:
        if self.link is None:
            raise ValueError(f"{self} is not connected to the others; harness.training.distributed.joined connects")
        return self.link

    @property
    def store(self) -> Any:
        """Keys and values that all ranks see; whoever uses it does so within `linked`."""
        return self._link.store

    @contextlib.contextmanager
    def linked(self) -> Iterator[None]:
        """Inside, a connection that fails is a RankLost."""
        try:
            yield
        except RuntimeError as error:  # all of torch.distributed's are
            raise lost(self, error) from error


ONE = Ranks(0, 0, 1)


def lost(ranks: Ranks, error: Exception) -> RankLost:
    """The error for a connection that has failed. Where a signal is about to end this process too, that one wins."""
    time.sleep(GRACE_S)
    reason = " ".join(str(error).split()[:30])
    return RankLost(
        f"rank {ranks.rank} of {ranks.world} has lost another one, whose own log says why ({reason}). What is saved is "
        "kept, and the same command goes on there"
    )


def joined(device: str, timeout_s: float = TIMEOUT_S) -> Ranks:
    """This process among those that were started with it; waits for all of them.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT tell, as torchrun sets them and submitit's
    TorchDistributedEnvironment. Without WORLD_SIZE, or with 1, it is `ONE`, and nothing is started. On GPUs the process
    gets the one with its local number, or the only one that it sees.

    Args:
        device: of the training, such as "cuda" or "cpu". timeout_s: without an answer until the others count as lost.

    Raises:
        UserError: variables are missing or no numbers; a device that ranks cannot share; too few GPUs.
        RankLost: the others did not come.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ONE
    rank, local_rank, world = _variables()
    backend = _backend(device, local_rank)
    timeout, me = datetime.timedelta(seconds=timeout_s), Ranks(rank, local_rank, world)
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=timeout)))
        # Twice the patience: what says it in words, the group for agreements, gives up first.
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=2 * timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
    except RuntimeError as error:
        raise lost(me, error) from error
    return dataclasses.replace(me, link=Link(control, store))


def joined_by_submitit(device: str, timeout_s: float = TIMEOUT_S) -> Ranks:
    """`joined` in a task of a job that submitit has started, whose tasks are the ranks."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks == 1:
        return ONE
    # Not CUDA_VISIBLE_DEVICES: `joined` chooses, also where Slurm shows each task a GPU of its own.
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return joined(device, timeout_s)


def _variables() -> tuple[int, int, int]:
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, so there are other ranks, but {', '.join(missing)} is not "
            "set; start through torchrun or submitit, or unset WORLD_SIZE"
        )
    try:
        rank, local_rank, world = (int(os.environ[name]) for name in VARIABLES[:3])
    except ValueError:
        given = ", ".join(f"{name}={os.environ[name]!r}" for name in VARIABLES[:3])
        raise UserError(f"ranks are whole numbers, but the environment has {given}") from None
    if not 0 <= rank < world or local_rank < 0:
        raise UserError(f"RANK is {rank} and LOCAL_RANK {local_rank} with WORLD_SIZE {world}; ranks count from 0")
    return rank, local_rank, world


def _backend(device: str, local_rank: int) -> str:
    """Also makes "cuda" mean this rank's GPU."""
    if device == "cpu":
        return "gloo"
    if device != "cuda":
        raise UserError(
            f"runtime.device {device!r} names one device, and several ranks need one each; give cuda or cpu"
        )
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise UserError(f"rank {local_rank} of this machine has no GPU: there are {count}; start that many ranks")
    torch.cuda.set_device(local_rank if count > 1 else 0)
    return "nccl"


class _Shell(nn.Module):
    """Parameters, and nothing that is computed from them: all that averaging gradients needs to know."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks, counts: tuple[int, ...]) -> Tensor:
        before = sum(counts[: ranks.rank])
        ctx.own, ctx.world = slice(before, before + counts[ranks.rank]), ranks.world
        most = max(counts)
        sent = tensor.contiguous()
        if len(tensor) < most:
            sent = torch.cat([sent, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
        received = tensor.new_empty(ranks.world * most, *tensor.shape[1:])
        with ranks.linked():  # as bytes, which every backend moves
            dist.all_gather_into_tensor(received.view(torch.uint8), sent.view(torch.uint8))
        if len(set(counts)) == 1:
            return received
        return torch.cat([part[:count] for part, count in zip(received.split(most), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own] * ctx.world, None, None
