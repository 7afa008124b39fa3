"""The cluster that the tests of this folder share. A second worker has one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm.cluster import Cluster, reason_not_available


@pytest.fixture(scope="package")
def running_slurm() -> Iterator[Cluster]:
    reason = reason_not_available()
    if reason:
        pytest.skip(reason)
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(running_slurm: Cluster) -> Iterator[Cluster]:
    """The running cluster, without a job before and after the test."""
    yield running_slurm
    running_slurm.cancel_all()
