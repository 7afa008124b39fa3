"""One thread a test process: the suite runs in parallel, and forked children must not inherit a thread pool.

No test fails for being slow.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings

from harness import registry

torch.set_num_threads(1)

# How long a draw takes is a matter of who else is using the machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="module")
def no_strangers():
    """A plugin that one file's tests load is forgotten before those of the next, as in a process of their own."""
    before = list(registry._PLUGINS)
    yield
    registry._PLUGINS[:] = before
