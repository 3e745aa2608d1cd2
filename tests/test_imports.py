"""Which package may import which: a row names all that lies below it. Nothing runs up, and so there is no circle."""

import ast
import re
from pathlib import Path

import sdbatch

PACKAGE = Path(sdbatch.__file__).parent

# From the ground up. Every package may import sdbatch/ itself (errors, messages).
MAY_IMPORT = {
    "storage": set(),
    "telemetry": {"storage"},
    "job": {"storage"},
    "study": {"job", "storage"},
    "prompts": {"job", "storage"},
    "imaging": {"job", "storage"},
    "config": {"job", "storage", "telemetry"},
    "engine": {"job", "storage", "telemetry"},
    "engine.cluster": {"engine", "job", "storage", "telemetry"},
    "spool": {"config", "job", "storage", "telemetry"},
    "inputs": {"imaging", "job", "prompts", "spool", "storage"},
    "client": {"config", "imaging", "job", "prompts", "spool", "storage", "study"},
    "history": {"imaging", "job", "prompts", "spool", "storage"},
    "operations": {"config", "engine", "engine.cluster", "job", "spool", "storage"},
    "service.queue": {"job", "spool", "storage", "telemetry"},
    "service": {
        "service.queue",
        *(
            "config",
            "engine",
            "engine.cluster",
            "history",
            "inputs",
            "job",
            "operations",
            "prompts",
            "spool",
            "storage",
        ),
        *("study", "telemetry"),
    },
    "monitoring": {"config", "history", "spool", "storage", "telemetry"},
    "access": {"config", "storage"},
    "web": {"access", "client", "config", "history", "imaging", "job", "spool", "storage", "telemetry"},
    "programs": {"client", "config", "history", "imaging", "job", "monitoring", "spool", "storage", "web"},
    "renderer.device": set(),
    "renderer.sampling": set(),
    "renderer.k_diffusion": {"renderer.sampling"},
    "renderer.weights": {"job", "renderer.device", "storage"},
    "renderer.networks": {"job"},
    "renderer.models": {
        *("job", "prompts", "storage"),
        *("renderer.device", "renderer.networks", "renderer.sampling", "renderer.weights"),
    },
    "renderer.lora": {"renderer.models", "renderer.weights", "storage"},
    "renderer.memory": {"renderer.device", "renderer.models", "storage"},
    "renderer.tuning": {"engine", "renderer.device", "renderer.models", "renderer.networks", "storage"},
    "renderer.pictures": {
        *("imaging", "job", "storage"),
        *("renderer.device", "renderer.memory", "renderer.models", "renderer.weights"),
    },
    "renderer": {
        *("engine", "imaging", "job", "storage"),
        *(
            "renderer.device",
            "renderer.k_diffusion",
            "renderer.lora",
            "renderer.memory",
            "renderer.models",
            "renderer.pictures",
        ),
        *("renderer.networks", "renderer.sampling", "renderer.tuning", "renderer.weights"),
    },
    "cli": {
        *(
            "client",
            "config",
            "history",
            "job",
            "operations",
            "service",
            "spool",
            "storage",
            "study",
            "telemetry",
            "web",
        ),
        *("access", "monitoring", "programs", "renderer", "renderer.models"),
    },
}
PACKAGE_ROW = r"^\| `(\w+)/` \| [^|]+ \|([^|]*)\|$"
TORCH = {"torch", "diffusers", "transformers"}


def imports(path: Path) -> set[str]:
    """The names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def package_of(module: str) -> str:
    """Empty for what lies in sdbatch/ itself."""
    return module.rpartition(".")[0]


def ours(found: set[str]) -> set[str]:
    return {name.removeprefix("sdbatch.") for name in found} & set(MODULES)


def test_each_package_imports_what_lies_below_it_and_nothing_else() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, found in MODULES.items()
        for other in ours(found)
        if package_of(name)
        and package_of(other) not in {"", package_of(name)}
        and package_of(other) not in MAY_IMPORT[package_of(name)]
    ]
    assert wrong == []


def test_the_table_names_every_package_and_has_no_circle() -> None:
    assert {package_of(name) for name in MODULES} - {""} == set(MAY_IMPORT)
    height = {name: place for place, name in enumerate(MAY_IMPORT)}
    assert not [
        (name, other) for name, others in MAY_IMPORT.items() for other in others if height[other] > height[name]
    ]


def test_the_architecture_page_has_the_same_table() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    told = {name: {*filter(None, may.strip().split(", "))} for name, may in re.findall(PACKAGE_ROW, page, re.MULTILINE)}
    tops: dict[str, set[str]] = {}
    for name, others in MAY_IMPORT.items():
        top = name.partition(".")[0]
        tops.setdefault(top, set()).update({other.partition(".")[0] for other in others} - {top})
    assert told == tops


def test_nothing_within_a_package_runs_in_a_circle() -> None:
    left = {name: {o for o in ours(found) if package_of(o) == package_of(name)} for name, found in MODULES.items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left


def test_a_package_has_at_most_about_a_dozen_files_and_says_in_a_line_what_lives_in_it() -> None:
    for package in MAY_IMPORT:
        folder = PACKAGE / package.replace(".", "/")
        assert len([*folder.glob("*.py")]) <= 16 or package == "cli", f"{package}; in cli/ a command has a file"
        text = (folder / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(text)), package
        assert len(text.splitlines()) == 1, package


def test_torch_is_imported_in_the_renderer_alone() -> None:
    wrong = [
        (name, other.split(".")[0])
        for name, found in MODULES.items()
        for other in found
        if other.split(".")[0] in TORCH and not name.startswith("renderer.")
    ]
    assert wrong == []


def test_what_the_supervisor_imports_never_leads_to_torch() -> None:
    # `sdbatch model` is a process of its own, which looks into checkpoints and ends.
    reached, pending = {"cli.model"}, ["cli.main", "service.daemon", "web.app"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += ours(MODULES[name])
    assert not [name for name in reached if MODULES[name] & TORCH]


def test_spool_and_service_do_not_know_which_engine_runs() -> None:
    knowing = {
        name
        for name, found in MODULES.items()
        for other in ours(found)
        if package_of(name) in {"spool", "service"}
        and other in {"engine.local", "engine.fake", "engine.cluster.engine"}
    }
    assert knowing == {"service.daemon"}, "which makes the engine that the configuration names"


def test_ray_is_imported_in_one_file_that_the_service_never_reaches() -> None:
    """A plain installation has no ray."""
    importing = {name for name, found in MODULES.items() if {other.partition(".")[0] for other in found} & {"ray"}}
    assert importing == {"engine.cluster.connection"}
    reached, pending = set(), ["cli.main", "service.daemon", "web.app", "engine.cluster.engine", "renderer.renderer"]
    while pending:
        if (name := pending.pop()) not in reached:
            reached.add(name)
            pending += ours(MODULES[name])
    assert not reached & importing


def test_a_jobs_parameters_know_no_paths_and_no_torch() -> None:
    assert ours(MODULES["job.parameters"]) <= {"errors", "job.samplers", "messages"}
    assert not {"pathlib", "os", "os.path"} & MODULES["job.parameters"]
