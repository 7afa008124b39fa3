"""This machine's GPUs as nvidia-smi tells them, and where jobs are placed: never too many, and each has its turn."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.dispatch.inventory import Gpu, Inventory, Placed, Request, inventory, never, place
from harness.errors import UserError

SMI = """#!/bin/sh
test "$1" = --query-gpu=index,uuid,name,memory.total || exit 9
cat <<END
0, GPU-1f2e, NVIDIA A100-SXM4-40GB, 40960
1, GPU-99aa, NVIDIA A100-SXM4-40GB, 40960
2, GPU-77cc, NVIDIA GH200 480GB, [N/A]
END
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a program in the place of nvidia-smi."""

    def put(text: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(text)
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put(SMI)
    return put


def indices(*args, **kwargs) -> list[int]:
    return [gpu.index for gpu in inventory(*args, **kwargs).gpus]


def test_gpus_are_those_that_nvidia_smi_lists(smi):
    found = inventory(slots=3)
    assert found.gpus[0] == Gpu(0, "NVIDIA A100-SXM4-40GB", 40960 * 2**20 / 1e9, "GPU-1f2e")
    assert [gpu.index for gpu in found.gpus] == [0, 1, 2] and found.gpus[2].memory_gb == 0
    assert [found.cpu_slots(cpus) for cpus in (1, 100)] == [3, 3]
    assert str(found).startswith("GPU 0 (NVIDIA A100-SXM4-40GB, 43 GB), GPU 1") and str(found).endswith("3 CPU slots")


def test_what_cuda_may_not_see_is_not_used(smi, monkeypatch):
    for value, expected in {"1": [1], "2,0": [2, 0], "GPU-99": [1], "": [], "-1": [], "0,-1,1": [0]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert indices() == expected, value
    assert indices(gpus="0") == [0]  # said aloud, it wins
    assert indices(gpus="") == []


def test_every_gpu_that_is_not_there_is_named(smi):
    with pytest.raises(UserError, match=r"--gpus: 2 mistakes:\n.*no GPU '7'.*Known: 0, 1, 2\n.*no GPU 'x'"):
        inventory(gpus="0,7,x")


def test_without_a_gpu_the_reason_is_kept(smi):
    smi("#!/bin/sh\necho NVIDIA-SMI has failed because it could not communicate\nexit 9\n")
    found = inventory()
    assert (
        found.gpus == ()
        and found.no_gpu == "no GPU (nvidia-smi: NVIDIA-SMI has failed because it could not communicate)"
    )
    assert "could not communicate" in (never(Request(gpus=1), found) or "")
    with pytest.raises(UserError, match="could not communicate"):
        inventory(gpus="0")


def test_without_nvidia_smi_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert inventory().no_gpu == "no GPU (nvidia-smi is not installed)"


def test_slots_are_cores_by_cores_a_job_and_one_at_least(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    assert [inventory().cpu_slots(cpus) for cpus in (1, 2, 7, 8)] == [7, 3, 1, 1]
    with pytest.raises(UserError, match="--slots is 0; give 1 or more"):
        inventory(slots=0)


def machine(*memory_gb: float, slots: int = 1) -> Inventory:
    return Inventory(tuple(Gpu(i, "fake", m) for i, m in enumerate(memory_gb)), slots=slots)


CPU, ONE, TWO = Request(), Request(gpus=1), Request(gpus=2)


def shared(memory_gb: float) -> Request:
    return Request(gpu_memory_gb=memory_gb)


def test_what_is_asked_for_is_read_from_the_resources():
    assert Request.of({"gpus": 2}) == TWO and Request.of({}) == CPU == Request.of({"gpus": None, "gpu_memory_gb": None})
    assert Request.of({"gpus": 0, "gpu_memory_gb": 8, "cpus": 3}) == shared(8)
    assert Request.of({"cpus": 3, "ranks": 2}) == Request(cpus=6)


def test_what_can_never_be_served_says_why():
    assert never(TWO, machine(16)) == "asks for 2 GPUs; here is 1"
    assert never(shared(24), machine(16, 8)) == "asks for 24 GB of one GPU; the largest here has 16.0"
    assert never(ONE, Inventory((), no_gpu="no GPU (nvidia-smi is not installed)")) == (
        "asks for 1 GPU; no GPU (nvidia-smi is not installed)"
    )
    assert [never(r, machine(16, 16)) for r in (CPU, ONE, TWO, shared(16))] == [None] * 4
    assert place([TWO, ONE], [], machine(16)) == {1: Placed(ONE, (0,))}  # and it keeps nothing back


def test_jobs_share_a_gpu_as_long_as_their_memory_fits():
    starts = place([shared(6), shared(6), shared(6), ONE], [], machine(12, 16))
    assert {i: placed.gpus for i, placed in starts.items()} == {0: (0,), 1: (0,), 2: (1,)}


def test_a_big_job_in_front_keeps_its_gpus_free_and_no_more():
    running = [Placed(ONE, (0,)), Placed(ONE, (1,))]
    starts = place([TWO, ONE, ONE], running, machine(8, 8, 8, slots=1))
    assert starts == {}  # GPU 2 is kept for it, with 0
    starts = place([TWO, ONE, ONE, CPU], running, machine(8, 8, 8, 8, 8))
    assert {i: placed.gpus for i, placed in starts.items()} == {0: (2, 3), 1: (4,), 3: ()}


def test_a_job_with_much_memory_is_not_overtaken_by_small_ones():
    assert place([shared(8), shared(2), shared(2)], [Placed(shared(6), (0,))], machine(10)) == {}
    starts = place([shared(8), shared(2)], [Placed(shared(6), (0,))], machine(10, 4))
    assert starts == {1: Placed(shared(2), (1,))}
    # What is kept for it is the GPU that has most free.
    starts = place([shared(8), shared(2)], [Placed(shared(6), (0,)), Placed(shared(3), (1,))], machine(10, 10))
    assert starts == {1: Placed(shared(2), (0,))}


def test_jobs_on_the_cpu_share_the_cores():
    on = Inventory((), cores=4)
    assert list(place([Request(cpus=2)] * 3, [], on)) == [0, 1]
    assert list(place([Request(cpus=1)] * 3, [Placed(Request(cpus=2))], on)) == [0]
    assert list(place([Request(cpus=8)] * 2, [], on)) == [0]


def test_a_gpu_that_is_no_longer_allowed_is_ignored():
    assert place([ONE], [Placed(ONE, (5,))], machine(8)) == {0: Placed(ONE, (0,))}


requests = st.one_of(
    st.just(CPU),
    st.integers(1, 5).map(lambda n: Request(gpus=n)),
    st.sampled_from([1, 2, 3.5, 5, 8, 16, 24]).map(shared),
)
machines = st.builds(
    lambda memories, slots: machine(*memories, slots=slots),
    st.lists(st.sampled_from([8, 12, 24]), max_size=4),
    st.integers(1, 3),
)


def check(running: list[Placed], on: Inventory) -> None:
    """Nobody has more than there is, and a whole GPU is nobody else's."""
    assert sum(not placed.gpus for placed in running) <= on.cpu_slots(1)
    for gpu in on.gpus:
        here = [placed.request for placed in running if gpu.index in placed.gpus]
        assert sum(r.gpu_memory_gb or 0 for r in here) <= gpu.memory_gb
        assert len(here) <= 1 or all(r.gpu_memory_gb for r in here)
    for placed in running:
        assert len(set(placed.gpus)) == len(placed.gpus) == (1 if placed.request.gpu_memory_gb else placed.request.gpus)


@settings(deadline=None, max_examples=300)
@given(machines, st.lists(requests, max_size=12), st.data())
def test_nothing_is_given_twice_and_everybody_has_a_turn(on, queue, data):
    """A whole life of a queue: jobs end in any order, others come behind, and the front job is never left waiting."""
    running: list[Placed] = []
    waiting = [request for request in queue if never(request, on) is None]
    ended = 0
    while waiting or running:
        starts = place(waiting, running, on)
        running += starts.values()
        waiting = [request for i, request in enumerate(waiting) if i not in starts]
        check(running, on)
        assert running, "an idle machine starts the first in the queue"
        running.pop(data.draw(st.integers(0, len(running) - 1)))
        ended += 1
    assert ended == sum(never(request, on) is None for request in queue)


@settings(deadline=None, max_examples=300)
@given(machines, st.lists(requests, min_size=1, max_size=6), st.data())
def test_a_job_in_front_is_overtaken_by_finitely_many(on, before, data):
    """However many small jobs come behind it, it starts once those that run now have ended, and a bounded few more."""
    front = data.draw(requests.filter(lambda request: never(request, on) is None))
    running = list(place(before, [], on).values())
    bound = len(running) + 24 * len(on.gpus) + on.cpu_slots(1) + 1  # what runs, and what may start beside it at first
    for _ in range(bound):
        stream = [Request(gpu_memory_gb=1), ONE, CPU, TWO] * 8  # never dries up
        starts = place([front, *stream], running, on)
        if 0 in starts:
            return
        running += starts.values()
        check(running, on)
        assert running
        # The oldest first, as if all took equally long; those behind never keep the front from its turn.
        running.pop(0)
    raise AssertionError(f"{front} waits after {bound} ends")
