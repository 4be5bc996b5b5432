"""A graph module that cannot be imported: its own lines, without those of whoever imported it."""

import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from mesh.errors import ConfigError

_HERE: Final = Path(__file__).resolve().parent
_OURS: Final = tuple(str(_HERE.parent / name) for name in ("mesh", "nodes", "budgets"))
_PLACES: Final = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in _PLACES})


def import_fault(path: str, error: BaseException) -> ConfigError:
    """The error for a module at `path` that raised while it was imported."""
    return ConfigError(path, f"the module cannot be imported.\n{own_lines(error)}")


def own_lines(error: BaseException) -> str:
    """Where in the user's own files it was raised, with the line itself, and what was raised."""
    told = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in told.stack if _is_own(frame.filename)]
    said = [*traceback.StackSummary.from_list(frames).format(), *told.format_exception_only()]
    return "".join(said).rstrip()


def show_own_lines() -> None:
    """From now on, what a graph module raises while `serve run` imports it is shown by its own lines alone."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        module = _imported(trace)
        if module is None or not isinstance(error, Exception):
            before(kind, error, trace)
            return
        print(f"Error: {import_fault(module, error)}", file=sys.stderr)  # noqa: T201 -- in place of the traceback

    sys.excepthook = hook


def _imported(trace: TracebackType | None) -> str | None:
    """The module that Ray was importing when this was raised; None if it was doing something else."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_name == "import_module_and_attr":
            return str(frame.f_locals.get("module_name", "the module"))
    return None


def _is_own(filename: str) -> bool:
    """Whether a file is neither of Python, nor of an installed package, nor of the mesh itself."""
    return not filename.startswith("<") and not any(_inside(filename, folder) for folder in (*_OURS, *_LIBRARIES))


def _inside(filename: str, folder: str) -> bool:
    return filename.startswith(folder + "/")
