"""docs/cluster.md and the files beside it, as far as they can be tried without a cluster."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from sdbatch.cli import main  # noqa: F401 - its commands belong to the app
from sdbatch.cli.common import app
from sdbatch.config.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "cluster.md").read_text()
VERIFY = shutil.which("systemd-analyze")


def blocks(kind: str) -> list[str]:
    """The blocks of commands for one purpose."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_configuration_in_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDBATCH_DEVICES")
    (text,) = blocks("yaml")
    settings = Settings.model_validate(yaml.safe_load(text))
    assert (settings.engine, settings.devices, settings.ray.address) == ("ray", "cuda", "10.0.0.1:6379")


def test_every_command_of_ours_in_the_page_is_one() -> None:
    known = typer.main.get_command(app)
    typed = [line for kind in ("sh", "sh serve", "sh seats") for text in blocks(kind) for line in text.splitlines()]
    ours = [shlex.split(line, comments=True) for line in typed if "sdbatch " in line and not line.startswith("pip")]
    assert len(ours) == 6
    for words in ours:
        arguments = words[words.index("sdbatch") + 1 :]
        command = known.commands[arguments[0]]  # type: ignore[attr-defined]
        if arguments[1] in getattr(command, "commands", {}):
            command = command.commands[arguments[1]]
        options = {option for param in command.params for option in param.opts}
        assert {word for word in arguments if word.startswith("--")} <= options


def test_the_page_shows_the_files_that_lie_beside_it() -> None:
    named = set(re.findall(r"\]\((cluster/[^)]+)\)", PAGE))
    there = {path.relative_to(DOCS).as_posix() for path in (DOCS / "cluster").rglob("*") if path.is_file()}
    assert named == there


def test_the_script_for_slurm_is_one() -> None:
    script = DOCS / "cluster/sdbatch.sbatch"
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    text = script.read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "--include-dashboard=false" in text


@pytest.mark.skipif(VERIFY is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["sdbatch-ray-head", "sdbatch-ray-node", "sdbatch"])
def test_systemd_understands_every_line_of_the_units(tmp_path: Path, name: str) -> None:
    """It ends well in any case, so whatever it says is a failure."""
    for unit in (DOCS / "cluster").glob("*.service"):
        text = re.sub(r'^ExecStart="[^"]+"', 'ExecStart="/bin/true"', unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE))
    shipped = (DOCS.parent / "systemd/sdbatch.service").read_text()
    shipped = re.sub(r'^ExecStart="[^"]+"', 'ExecStart="/bin/true"', shipped, flags=re.MULTILINE)
    (tmp_path / "sdbatch.service").write_text(re.sub(r"^(User|Group)=.*\n", "", shipped, flags=re.MULTILINE))
    shutil.copytree(DOCS / "cluster/sdbatch.service.d", tmp_path / "sdbatch.service.d")
    said = subprocess.run(
        [str(VERIFY), "verify", "--man=no", tmp_path / f"{name}.service"], capture_output=True, text=True, check=False
    )
    ours = [line for line in said.stderr.splitlines() if str(tmp_path) in line or "sdbatch" in line]
    assert ours == []


def test_no_unit_for_a_cluster_has_more_than_ours_but_the_network() -> None:
    """What only these units may: addresses of a private network, Ray's own limits."""
    shipped = keys((DOCS.parent / "systemd/sdbatch.service").read_text())
    changed = keys((DOCS / "cluster/sdbatch.service.d/cluster.conf").read_text())
    differing = {key for key, value in changed.items() if shipped.get(key, "") != value}
    assert differing == {
        *("Requires", "After", "JoinsNamespaceOf", "PrivateNetwork", "IPAddressAllow", "RestrictAddressFamilies"),
        *("LimitNOFILE", "PrivateUsers", "Environment", "TimeoutStopSec"),
    }
    assert changed["IPAddressDeny"] == "any"


def keys(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
