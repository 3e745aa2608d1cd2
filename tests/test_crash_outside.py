"""The real command, killed or failed by the kernel at every system call that changes names or syncs.

Unlike the tests in test_crash.py this knows nothing of files.py: a step that went past it would be found here.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crash import ALL_DONE_BUT_THE_TYPO, check, digests, fill, manifests, samples_in
from harness import make_root
from tests_support import run_sdbatch

from sdbatch.storage.root import Root

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]
CALLS = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,fsync,fdatasync,mkdir,mkdirat,rmdir,ftruncate"


def filled(path: Path) -> Root:
    root = make_root(path)
    (root.configs / "sdbatch.yaml").write_text("engine: fake\nsettle_seconds: 0\n")
    fill(root)
    return root


def traced(root: Root, *options: str) -> int:
    """A drain under strace; its exit code, or minus the signal."""
    command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path), "--drain"]
    return subprocess.run(
        ["strace", "-f", "-qq", *options, *command],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    ).returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], dict[str, list[str]]]:
    """How often each call is made, and the digests of the pictures."""
    root = filled(tmp_path_factory.mktemp("undisturbed") / "root")
    trace = tmp_path_factory.mktemp("trace") / "calls"
    assert traced(root, "-o", str(trace), "-e", f"trace={CALLS}") == ALL_DONE_BUT_THE_TYPO
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert calls["fsync"] > 80
    return calls, digests(manifests(root))


@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
def test_at_every_system_call(
    undisturbed: tuple[Counter[str], dict[str, list[str]]],
    tmp_path: Path,
    fault: str,
    record_property: Callable[[str, object], None],
) -> None:
    calls, pictures = undisturbed
    struck = 0
    for call, count in calls.items():
        for number in range(1, count + 1):
            root = filled(tmp_path / f"{call}-{number}")
            code = traced(root, "-o", "/dev/null", "-e", f"inject={call}:{fault}:when={number}")
            struck += code == -signal.SIGKILL
            before = samples_in(root)
            again = run_sdbatch("serve", "--root", root.path, "--drain")
            assert again.returncode in (0, ALL_DONE_BUT_THE_TYPO), again.stderr
            check(root, pictures, before)
            shutil.rmtree(root.path)
    if "SIGKILL" in fault:
        assert struck >= sum(calls.values()) - 3, "only the status's renames depend on the time"
    record_property("system calls", sum(calls.values()))
    print(f"{fault} at each of {sum(calls.values())} system calls: {dict(calls)}")  # noqa: T201 - for `pytest -rP`
