"""One thread a test process: the suite runs in parallel, and forked children must not inherit a thread pool.

No test fails for being slow.
"""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# How long a draw takes is a matter of who else is using the machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
