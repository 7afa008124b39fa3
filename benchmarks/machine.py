"""The machine, in one line, for the figures that a benchmark prints."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """The processor's model as the system names it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe() -> str:
    """System, processor, usable cores, Python; torch, its threads and its GPU if the caller has imported it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{platform.system()} {platform.machine()}", processor(), f"{cores} cores"]
    parts.append(f"Python {platform.python_version()}")
    torch = sys.modules.get("torch")
    if torch is not None:
        parts.append(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)


if __name__ == "__main__":
    print(describe())
