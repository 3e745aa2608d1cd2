"""A program that starts warm does as one that starts cold."""

import os
import subprocess
from pathlib import Path

import pytest
from tests_support import run_sdbatch
from warm import ColdPopen, WarmPopen


@pytest.mark.parametrize("arguments", [["--version"], ["validate", "none.yaml"], ["serve", "--root", "."]])
def test_it_says_the_same_and_ends_with_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    ended = []
    for kind in (ColdPopen, WarmPopen):
        monkeypatch.setattr(subprocess, "Popen", kind)
        ended.append(run_sdbatch(*arguments, cwd=tmp_path, env=os.environ | {"SDBATCH_ROOT": "elsewhere"}))
    cold, warm = ended
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert cold.stdout + cold.stderr
