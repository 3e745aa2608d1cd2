"""Who may import whom: upper floors import lower ones, never back; files on one floor only where said here."""

import ast
from pathlib import Path

import sdbatch

PACKAGE = Path(sdbatch.__file__).parent

FLOORS = [
    {"beneath", "errors"},
    {
        "engine.adapters",
        "engine.memory",
        "engine.names",
        "engine.pickled",
        "engine.sampler",
        "exiftext",
        "filenames",
        "files",
        "finding",
        "foreign",
        "grams",
        "journal",
        "pace",
        "web.retelling",
        "records",
        "slips",
        "spelling",
        "systemd",
        "tokens",
    },
    {
        "account",
        "ancestry",
        "document",
        "engine.fingerprint",
        "engine.limits",
        "engine.notes",
        "engine.plan",
        "handover",
        "engine.torchfile",
        "infotext",
        "job",
        "log",
        "manifest",
        "order",
        "modelconfig",
        "moments",
        "pngtext",
        "root",
        "status",
        "wheels",
    },
    {
        "bare",
        "bundle",
        "engine.checkpoint",
        "engine.networks",
        "engine.protocol",
        "engine.text",
        "hooks",
        "lock",
        "overview",
        "programs",
        "ownership",
        "prompts",
        "publish",
        "remarks",
        "schema",
        "settings",
        "shelf",
        "spool",
        "watcher",
        "web.peers",
        "words",
    },
    {
        "configuration",
        "engine.adapter_config",
        "engine.bert",
        "engine.conversion",
        "engine.kinds",
        "engine.local",
        "engine.pictures",
        "inbox",
        "install",
        "jobfile",
        "joblog",
        "saying",
        "screen",
        "surroundings",
        "tables",
        "web.thumbnails",
        "web.server",
    },
    {
        "check",
        "commands",
        "doctor",
        "engine.original",
        "engine.watermark",
        "gathering",
        "housekeeping",
        "inforce",
        "inputs",
        "reader",
        "steer",
        "latecomers",
        "repeats",
        "naming",
        "triage",
        "unmovable",
        "web.fields",
        "web.uploads",
    },
    {"engine.diffusers_folder", "found", "submitting", "backup", "index", "joblog", "steer", "task"},
    {"database", "engine.autoencoder", "intake", "tending", "readiness", "searching", "upkeep"},
    {"engine.models", "history", "turns"},
    {"engine.ladder", "engine.lora", "engine.precision", "engine.workshop", "historian", "restoring", "web.site"},
    {"particulars"},
    {
        "engine.decoding",
        "engine.residents",
        "engine.safety",
        "looking",
        "modelling",
        "service",
        "web.guard",
        "web.language",
        "web.queue",
    },
    {"engine.draw", "engine.finishing", "engine.grid", "testing", "web.form", "web.pictures"},
    {"daemon", "engine.renderer", "web.app"},
    {"engine.examine", "web.command"},
    {"cli"},
    {"__main__"},
]
TORCH = {"torch", "diffusers", "transformers"}
# The supervisor's side of the engine.
TORCHLESS = {"engine.protocol", "engine.local"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {name_of(p): imports(p) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"}
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}


def ours(found: set[str]) -> set[str]:
    return {name.removeprefix("sdbatch.") for name in found} & set(MODULES)


def test_every_file_has_its_floor() -> None:
    assert set(MODULES) == set(HEIGHT)


def test_files_import_lower_floors_only() -> None:
    wrong = [(name, other) for name, found in MODULES.items() for other in ours(found) if HEIGHT[other] >= HEIGHT[name]]
    # The fake engine is wired in where the configuration asks for it.
    assert wrong == []


def test_torch_is_imported_inside_the_engine_alone() -> None:
    wrong = [
        (name, other.split(".")[0])
        for name, found in MODULES.items()
        for other in found
        if other.split(".")[0] in TORCH and (not name.startswith("engine.") or name in TORCHLESS)
    ]
    assert wrong == []


def test_what_the_supervisor_imports_never_leads_to_torch() -> None:
    # `sdbatch model` is a process of its own, which looks into checkpoints and ends.
    reached, pending = {"modelling"}, ["cli", "daemon", "service", "testing"]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += ours(MODULES[name])
    assert not [name for name in reached if MODULES[name] & TORCH]


def test_spool_publish_and_service_do_not_know_which_engine_runs() -> None:
    for name in ("spool", "publish", "service", "inbox", "task"):
        assert not [
            other for other in ours(MODULES[name]) if other.startswith("engine.") and other != "engine.protocol"
        ]


def test_job_knows_no_paths_and_no_torch() -> None:
    assert ours(MODULES["job"]) == {"errors"}
    assert not {"pathlib", "os", "os.path"} & MODULES["job"]
