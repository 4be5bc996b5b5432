"""A folder by which replicas tell the process that runs `serve run` how their start goes: steps, and why one failed.

Serve hides both: a replica's output goes to files, and a failed start shows as "Failed to update the deployments".
"""

import contextlib
import os
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import MeshError

_STEPS: Final = "steps"
_FAILED: Final = ".failed"
_SERVING: Final = ".serving"
_DRAIN: Final = "draining"
_LINES_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Board:
    """Writers append; one reader follows. Lines are short, so that appends of several processes do not mix."""

    folder: Path

    def clear(self) -> None:
        """Make the folder, and forget what an earlier start wrote."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in (self.folder / _STEPS, self.folder / _DRAIN, *self.folder.glob(f"*{_FAILED}")):
            file.unlink(missing_ok=True)

    def step(self, text: str) -> None:
        """Say what begins or ended now. A board that cannot be written is no reason to fail."""
        line = re.sub(r"\s+", " ", text)[:400] + "\n"
        with contextlib.suppress(OSError):
            file = os.open(self.folder / _STEPS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    def failed(self, who: str, error: BaseException) -> None:
        """Keep why `who` could not start: one message for our own errors, the end of the stack trace for others."""
        if isinstance(error, MeshError):
            text = str(error)
        else:
            lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
            text = "\n".join(lines[-_LINES_SHOWN:])
        with contextlib.suppress(OSError):
            draft = self.folder / f"{who}.{os.getpid()}.draft"
            draft.write_text(text)
            draft.replace(self.folder / f"{who}{_FAILED}")

    def steps(self, offset: int) -> tuple[list[str], int]:
        """Whole lines from `offset` on, and where to go on reading."""
        try:
            with (self.folder / _STEPS).open("rb") as file:
                file.seek(offset)
                found = file.read()
        except OSError:
            return [], offset
        whole = found[: found.rfind(b"\n") + 1]
        return whole.decode(errors="replace").splitlines(), offset + len(whole)

    def started(self, who: str) -> None:
        """`who` is up: an earlier failure of it no longer holds."""
        with contextlib.suppress(OSError):
            (self.folder / f"{who}{_FAILED}").unlink()

    def failures(self) -> dict[str, str]:
        """Why each of those could not start that have not started since."""
        found = {}
        with contextlib.suppress(OSError):
            for file in sorted(self.folder.glob(f"*{_FAILED}")):
                found[file.name.removesuffix(_FAILED)] = file.read_text()
        return found

    def drain(self) -> None:
        """Tell the ingress replicas to turn new requests away."""
        (self.folder / _DRAIN).touch()

    @property
    def draining(self) -> bool:
        return (self.folder / _DRAIN).exists()

    def serves(self, pid: int) -> None:
        """An ingress replica with this process id takes requests now."""
        with contextlib.suppress(OSError):
            (self.folder / f"{pid}{_SERVING}").touch()

    def idle(self, pid: int) -> None:
        """The replica has no request, and will take no more."""
        with contextlib.suppress(OSError):
            (self.folder / f"{pid}{_SERVING}").unlink()

    def all_idle(self) -> bool:
        """Whether each replica that took requests is idle, or is no more."""
        pids = [int(file.stem) for file in self.folder.glob(f"*{_SERVING}")]
        return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def log_tail(folder: Path, deployment: str, lines: int = _LINES_SHOWN) -> str:
    """The end of the newest log of a deployment's replicas in Ray's session folder that tells an error.

    Serve starts a replica again at once: the newest log of all may be that of one that has said nothing yet. Empty if
    no log says anything.
    """
    logs = sorted(folder.glob(f"logs/serve/replica_*{deployment}*.log"), key=lambda file: -file.stat().st_mtime)
    texts = [text for log in logs if (text := log.read_text(errors="replace").strip())]
    told = next((text for text in texts if "ERROR " in text or "Traceback" in text), texts[0] if texts else "")
    return "\n".join(told.splitlines()[-lines:])
