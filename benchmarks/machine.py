"""What the figures were measured on: without it they mean nothing."""

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("ray", "langgraph", "aiohttp", "uvicorn", "uvloop", "pydantic", "orjson")


def facts() -> dict[str, object]:
    """CPU, memory, kernel, niceness, load and the versions that matter. No host name, no paths."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "load_1_min": round(os.getloadavg()[0], 2),
        "cpu_pressure_10_s": _pressure(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _pressure() -> float | None:
    """Percent of the last 10 s in which something waited for a CPU, where the kernel tells."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return float(Path("/proc/pressure/cpu").read_text().split("avg10=")[1].split()[0])
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None
