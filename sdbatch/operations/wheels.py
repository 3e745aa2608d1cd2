"""Collects the wheels for another machine with pip.

pip chooses wheels for another platform, but evaluates the conditions in their requirements (`platform_system ==
"Linux"`) for this machine: on a Mac it would leave out CUDA. So it gets the values of the other machine.
"""

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sdbatch.errors import BundleError

EXTRA = "web"  # with the web page: a server without a network can't install it later
OLDEST_GLIBC = 5  # 2.5 is what manylinux1 was
# pip has no option for these answers; `packaging`, which it brings, takes them from one function.
PIP_FOR_MARKERS = """
import json, runpy, sys
from pip._vendor.packaging import markers
told = json.loads(sys.argv.pop(1))
markers.default_environment = lambda: dict(told)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Target:
    """A Linux machine: processor ("x86_64"), minimum glibc (28 is 2.28), exact Python version ("3.11")."""

    machine: str
    glibc: int
    python: str

    @classmethod
    def of(cls, name: str, python: str) -> "Target":
        """From linux-x86_64, or manylinux_2_34_x86_64 to state the glibc too.

        Raises:
            BundleError: the platform or the Python version is invalid.
        """
        match = re.fullmatch(r"(?:linux-|manylinux_2_(?P<glibc>\d+)_)(?P<machine>x86_64|aarch64)", name)
        if match is None:
            known = "linux-x86_64, linux-aarch64, or manylinux_2_34_x86_64 and the like"
            raise BundleError("--platform {name}: sdbatch runs on Linux; use one of {known}", name, known)
        if not re.fullmatch(r"3\.\d+", python):
            raise BundleError("--python {python}: give it like 3.11, as in `python3 --version` on the server", python)
        return cls(match["machine"], int(match["glibc"] or 28), python)

    @property
    def tags(self) -> list[str]:
        """All platform tags; pip accepts wheels for an older glibc only if each is named."""
        versions = [f"manylinux_2_{minor}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        named = ["manylinux2014", "manylinux2010", "manylinux1", "linux"]
        return [f"{tag}_{self.machine}" for tag in versions + named]

    @property
    def markers(self) -> dict[str, str]:
        """The values for conditions in requirements on that machine."""
        return {
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": self.machine,
            "platform_release": "",
            "platform_version": "",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
        }


def this_machine() -> tuple[str, str]:
    """The platform and Python version of this machine, as far as sdbatch supports it."""
    machine = platform.machine() if sys.platform == "linux" else ""
    is_known = machine in {"x86_64", "aarch64"}
    return f"linux-{machine if is_known else 'x86_64'}", f"{sys.version_info.major}.{sys.version_info.minor}"


def build(source: Path, folder: Path) -> Path:
    """The wheel of the checkout at `source`, in `folder`."""
    _pip("wheel", "--no-deps", f"--wheel-dir={folder}", str(source))
    (wheel,) = folder.glob("sdbatch-*.whl")
    return wheel


def collect(own: Path, folder: Path, target: Target) -> None:
    """Fill `folder`, which may contain our own wheel, with everything it needs on the target, and pip.

    Raises:
        BundleError: pip finds no wheel for something.
    """
    choice = ["--only-binary=:all:", "--implementation=cp", f"--python-version={target.python}"]
    choice += [f"--platform={tag}" for tag in target.tags]
    pip = ("-c", PIP_FOR_MARKERS, json.dumps(target.markers))
    _pip("download", f"--dest={folder}", *choice, f"{own}[{EXTRA}]", "pip", pip=pip)


def _pip(*arguments: str, pip: tuple[str, ...] = ("-m", "pip")) -> None:
    if find_spec("pip") is None:
        raise BundleError("{executable} has no pip: run `{executable} -m ensurepip`, or `make bundle`", sys.executable)
    command = [sys.executable, *pip, "--disable-pip-version-check", *arguments]
    # Standard output is the command's own answer.
    if subprocess.run(command, stdout=2, check=False).returncode:
        raise BundleError("pip could not {command} the packages; see its message above", arguments[0])
