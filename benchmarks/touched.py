"""A pytest plugin that writes down which tests run which lines of `budgets/`: `benchmarks.mutants` runs no others.

`pytest -p benchmarks.touched`, with MESH_TOUCHED naming the file to write.
"""

import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

VARIABLE: Final = "MESH_TOUCHED"
FOLDER: Final = str(Path(__file__).resolve().parent.parent / "budgets") + os.sep

_running: list[str] = [""]  # the test that runs now, on whatever thread
_touched: defaultdict[str, set[str]] = defaultdict(set)
_took_s: dict[str, float] = {}
_failed: set[str] = set()


def _entered(frame: FrameType, _event: str, _given: Any) -> Any:
    return _line if frame.f_code.co_filename.startswith(FOLDER) else None


def _line(frame: FrameType, _event: str, _given: Any) -> Any:
    _touched[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"].add(_running[0])
    return _line


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, None]:
    _running[0], began = item.nodeid, time.perf_counter()
    threading.settrace(_entered)
    sys.settrace(_entered)
    yield
    sys.settrace(None)
    threading.settrace(None)
    _took_s[item.nodeid] = time.perf_counter() - began
    _running[0] = ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write {"lines": {"file:line": [test, ...]}, "took_s": {test: seconds}, "failed": [test, ...]}."""
    lines = {line: sorted(tests - {""}) for line, tests in _touched.copy().items()}
    Path(os.environ[VARIABLE]).write_text(json.dumps({"lines": lines, "took_s": _took_s, "failed": sorted(_failed)}))
