"""The wheel, built and installed into an environment of its own: the packages that it needs are lent by this one's."""

import os
import site
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DROPPED = ("MESH_", "PYTHON", "VIRTUAL_ENV")

SERVE = """\
#!{python}
from ray.serve.scripts import cli

cli()
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that has the wheel, and neither this checkout nor its folder on its path."""

    wheel: Path
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def serve(self) -> Path:
        return self.folder / "bin" / "serve"

    def run(self, *command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in a folder."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the lender's plugins are not the project's
        path = self.folder / "bin" / command[0]
        ran = subprocess.run(
            [path, *command[1:]], cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=55
        )
        if check:
            assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
        return ran


def built(folder: Path) -> Path:
    """The wheel, made from this checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path, folder: Path) -> Installed:
    """Install the wheel alone, and lend what it needs. The lent folder's own `.pth` files are not read there, so that
    this checkout, which one of them names, stays out of sight.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    found = Installed(wheel, folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    uv = Path(sys.executable).with_name("uv")
    command = [
        str(uv),
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        str(found.python),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    found.serve.write_text(SERVE.format(python=found.python))
    found.serve.chmod(0o755)
    return found
