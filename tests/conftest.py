"""One thread a test process: the suite runs in parallel, and forked children must not inherit a thread pool."""

import torch

torch.set_num_threads(1)
