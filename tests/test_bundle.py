"""The bundle: what is in it, and how it is set up where there is no network."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tests_support import HERE, REFERENCE, run_sdbatch

from sdbatch.errors import BundleError
from sdbatch.operations import bundle, wheels
from sdbatch.operations.wheels import Target
from sdbatch.storage import files

PLATFORM, PYTHON = wheels.this_machine()
HERE_TARGET = Target.of(PLATFORM.replace("linux-", "manylinux_2_17_"), PYTHON)
WITHOUT_NETWORK = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
CAN_UNSHARE = subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode == 0
needs_namespaces = pytest.mark.skipif(not CAN_UNSHARE, reason="network namespaces are forbidden here")

# Stands for sdbatch where only the installer is looked at: says how it was called.
STUB = "import pathlib, sys\ndef main() -> None:\n    print('called:', *sys.argv[1:])\n"


def write_wheel(folder: Path, name: str, requires: list[str], tag: str = "py3-none-any") -> Path:
    """A wheel as pip takes it, of a module with a command of its name."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    extra = {"cuda_toolkit": "cublas", "sdbatch": "web"}.get(name)
    metadata += f"Provides-Extra: {extra}\n" if extra else ""
    content = {
        f"{name}.py": STUB,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    wheel = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path, text in content.items():
            file.writestr(path, text)
    return wheel


def pool_of(folder: Path) -> Path:
    """Wheels that need each other as torch and CUDA do."""
    folder.mkdir()
    write_wheel(
        folder, "torch", ['cuda_toolkit[cublas]; platform_machine == "aarch64"', 'win; sys_platform == "win32"']
    )
    write_wheel(folder, "cuda_toolkit", ['nvidia_cublas==1.0; extra == "cublas"', 'never; extra == "other"'])
    write_wheel(folder, "nvidia_cublas", [], "py3-none-manylinux_2_17_aarch64")
    write_wheel(folder, "old_python", [])
    write_wheel(folder, "page", [])
    write_wheel(folder, "pip", [])
    return folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel named sdbatch, and a pip that knows what `pool_of` wrote and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(pool_of(tmp_path / "pool")))
    (tmp_path / "own").mkdir()
    return write_wheel(
        tmp_path / "own", "sdbatch", ["torch>=1", 'old_python; python_version < "3.12"', 'page; extra == "web"']
    )


@pytest.mark.parametrize(
    ("machine", "python", "others"),
    [
        ("x86_64", "3.11", {"old_python"}),
        ("x86_64", "3.13", set()),
        ("aarch64", "3.12", {"cuda_toolkit", "nvidia_cublas"}),
    ],
)
def test_another_machine_gets_what_only_it_needs(
    own: Path, tmp_path: Path, machine: str, python: str, others: set[str]
) -> None:
    """pip itself answers the conditions in requirements for the machine it runs on."""
    folder = tmp_path / "wheels"
    target = Target(machine, 28, python)
    wheels.collect(own, folder, target)
    found = {path.name.split("-")[0] for path in folder.glob("*.whl")}
    assert found == {"sdbatch", "torch", "pip", "page"} | others


def test_what_has_no_wheel_ends_in_plain_words(own: Path, tmp_path: Path) -> None:
    (tmp_path / "pool/nvidia_cublas-1.0-py3-none-manylinux_2_17_aarch64.whl").unlink()
    with pytest.raises(BundleError, match="pip could not download"):
        wheels.collect(own, tmp_path / "wheels", Target("aarch64", 28, "3.12"))


@pytest.mark.parametrize(
    ("platform", "python", "said"),
    [
        ("win_amd64", "3.11", "linux-x86_64"),
        ("linux-x86_64", "311", "give it like 3.11"),
        ("linux-ppc", "3.11", "aarch64"),
    ],
)
def test_a_target_that_is_none_is_refused(tmp_path: Path, platform: str, python: str, said: str) -> None:
    ended = run_sdbatch("bundle", "-o", tmp_path / "b.tar", "--platform", platform, "--python", python)
    assert (ended.returncode, said in ended.stderr) == (1, True)
    assert not list(tmp_path.iterdir())


def test_a_target_takes_wheels_for_its_glibc_and_older_ones() -> None:
    tags = Target.of("manylinux_2_34_aarch64", "3.12").tags
    assert tags[0] == "manylinux_2_34_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"} < set(tags)
    assert "manylinux_2_35_aarch64" not in tags


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ckpt", "none.ckpt"], "is not a file"),
        (["--ckpt", "."], "a folder"),
        (["--config", "a.yaml"], "give --ckpt too"),
    ],
)
def test_a_model_that_can_not_go_along_is_refused_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    ended = run_sdbatch("bundle", "-o", tmp_path / "b.tar", *options, cwd=tmp_path)
    assert (ended.returncode, said in ended.stderr) == (1, True)
    assert not list(tmp_path.iterdir())


def test_an_sdbatch_without_its_source_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "SOURCE", tmp_path)
    with pytest.raises(BundleError, match="make bundle"):
        bundle.make(tmp_path / "b.tar", HERE_TARGET, None, None)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A small bundle with a real installer, a real pip and a stub in sdbatch's place."""
    folder = tmp_path / "gathered"
    folder.mkdir()
    own = write_wheel(folder, "sdbatch", ['helper; extra == "web"'])
    write_wheel(folder, "helper", [])
    model = {"models/model.ckpt": REFERENCE / "model/v1-inference-tiny.yaml"}
    gathered = [own, folder / "helper-1.0-py3-none-any.whl", pip_wheel(folder)]
    bundle.pack(tmp_path / "b.tar", bundle._conf(HERE_TARGET), gathered, dict(model))
    return tmp_path / "b.tar"


def pip_wheel(folder: Path) -> Path:
    """The pip that runs this, as a wheel; ensurepip has one where Python brings its own."""
    import ensurepip  # noqa: PLC0415 - Debian's Python lacks it, and then its package lies elsewhere

    (bundled,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    return Path(shutil.copy(bundled, folder))


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "sdbatch-bundle"


def install(place: Path, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the installer where no network is, and where settings of pip and Python lead astray."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(HERE.parent)}
    environment |= {"PIP_INDEX_URL": "http://index.invalid/", "PIP_REQUIRE_VIRTUALENV": "1"}
    command = [*WITHOUT_NETWORK, "sh", str(place / "install.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment | env, capture_output=True, text=True, check=False)


def test_the_archive_holds_everything_and_its_sums(packed: Path, tmp_path: Path) -> None:
    place = unpack(packed, tmp_path)
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert {"install.sh", "bundle.conf", "configs/sdbatch.yaml", "models/model.ckpt", "README.md"} < names
    assert {"docs/operations.md", "docs/hooks/webhook.sh"} < names, "what the README and the page send to"
    assert any(name.startswith("wheels/sdbatch-") for name in names)
    sums = {line[66:]: line[:64] for line in (place / "SHA256SUMS").read_text().splitlines()}
    assert sums == {name: files.sha256(place / name) for name in names - {"SHA256SUMS"}}
    assert os.access(place / "install.sh", os.X_OK)


def test_a_bundle_that_can_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bundle.pack(tmp_path / "b.tar", b"", [tmp_path / "gone.whl"], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough  # pip installs twice
@needs_namespaces
def test_it_is_set_up_without_a_network_and_again(packed: Path, tmp_path: Path) -> None:
    place = unpack(packed, tmp_path)
    for options in ([], ["--root", tmp_path / "my root", "--service"]):
        ended = install(place, tmp_path / "the opt", *options)
        assert ended.returncode == 0, ended.stderr
    root = f"{tmp_path}/my root"
    called = [line.removesuffix(" --user") for line in ended.stdout.splitlines() if line.startswith("called:")]
    assert called == [f"called: init {root} --model {place}/models/model.ckpt", f"called: install --root {root}"]
    assert ended.stdout.endswith(f"{tmp_path}/the opt/.venv/bin/sdbatch doctor --root {root}\n")
    assert (tmp_path / "the opt/.venv/bin/helper").exists()


@needs_namespaces
@pytest.mark.parametrize("damage", ["wheels/helper-1.0-py3-none-any.whl", "configs/sdbatch.yaml", "SHA256SUMS"])
def test_a_damaged_bundle_is_not_used(packed: Path, tmp_path: Path, damage: str) -> None:
    place = unpack(packed, tmp_path)
    if damage == "SHA256SUMS":
        (place / damage).unlink()
    else:
        (place / damage).write_bytes(b"")
    ended = install(place, tmp_path / "opt")
    assert (ended.returncode, damage in ended.stderr) == (1, True)
    assert not (tmp_path / "opt").exists()


@needs_namespaces
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python=3.99", "this bundle is for Python 3.99, here is Python 3"),
        ("machine=vax", "this bundle is for Linux on vax"),
        ("glibc=99", "the bundle wants 2.99"),
    ],
)
def test_a_bundle_for_another_machine_says_so(packed: Path, tmp_path: Path, line: str, said: str) -> None:
    place = unpack(packed, tmp_path)
    conf, sums = place / "bundle.conf", place / "SHA256SUMS"
    before = conf.read_bytes()
    conf.write_text(re.sub(rf"^{line.partition('=')[0]}=.*$", line, before.decode(), flags=re.MULTILINE))
    digest = hashlib.sha256(before).hexdigest()
    sums.write_text(sums.read_text().replace(digest, files.sha256(conf)))
    ended = install(place, tmp_path / "opt")
    assert (ended.returncode, said in ended.stderr) == (1, True)
    assert not (tmp_path / "opt").exists()


@needs_namespaces
@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--sevice", "x"], 2), (["--root"], 2), (["--help"], 0)])
def test_the_installer_tells_how_to_call_it(packed: Path, tmp_path: Path, arguments: list[str], code: int) -> None:
    ended = install(unpack(packed, tmp_path), *arguments)
    assert ended.returncode == code
    assert "sh install.sh DIR [--root ROOT] [--service]" in ended.stdout + ended.stderr


@needs_namespaces
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_bundle_draws_without_a_network(tmp_path: Path) -> None:
    """From the registry to the picture, on a torch of hundreds of megabytes or of gigabytes."""
    made = run_sdbatch("bundle", "-o", tmp_path / "b.tar")
    assert (made.returncode, made.stdout) == (0, f"{tmp_path}/b.tar\n"), made.stderr
    ended = install(unpack(tmp_path / "b.tar", tmp_path), tmp_path / "opt")
    assert ended.returncode == 0, ended.stderr
    assert "no checkpoint yet" in ended.stdout

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*WITHOUT_NETWORK, str(tmp_path / "opt/.venv/bin/sdbatch"), *map(str, arguments)]
        environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    job = str(HERE.parent / "docs/jobs/blue-truck.json")
    for arguments in (
        ("init", "demo", "--demo"),
        ("submit", job, "--root", "demo"),
        ("serve", "--root", "demo", "--drain"),
        ("doctor", "--root", "demo"),
    ):
        ended = run(*arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "fits v1-inference.yaml" in ended.stdout
    assert len(list((tmp_path / "demo/outputs").rglob("0*.png"))) == 6
