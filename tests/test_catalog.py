"""The Chinese catalog has every message that the code can say, with the same parameters, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from jinja2 import Environment

import sdbatch
from sdbatch import errors, messages
from sdbatch.cli.common import app
from sdbatch.cli.main import OLD_NAMES, paragraphs
from sdbatch.config.settings import Cluster, Retention, Settings, Web
from sdbatch.job.parameters import Img2Img, Lora, Txt2Img

PACKAGE = Path(sdbatch.__file__).parent
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
SAYING = {"Message", "FieldError", *ERRORS}
# Texts of the operating system, as its C library says them in English.
SYSTEM = {"Permission denied", "No space left on device", "Read-only file system", "No such file or directory"}
SYSTEM |= {"Is a directory", "Not a directory", "Input/output error", "File name too long", "Stale file handle"}
# What typer says, through gettext.
SYSTEM |= {"Arguments", "Options", "Commands", "Error", "[env var: {}]", "[default: {}]", "[required]"}
SYSTEM |= {"Aborted.", "Missing command.", "No such command {name!r}."}
SYSTEM |= {"Show this message and exit.", "Try [blue]'{command_path} {help_option}'[/] for help."}


Constants = list[tuple[str, int, set[str]]]  # names, the lines where they get a text, and which


def texts(node: ast.expr, constants: Constants) -> set[str] | None:
    """What an expression may be, where the code itself tells it: of a name, what it was given last."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=one, orelse=other):
            both = texts(one, constants), texts(other, constants)
            return both[0] | both[1] if both[0] is not None and both[1] is not None else None
        case ast.Name(id=name):
            found = [(line, text) for known, line, text in constants if known == name and line <= node.lineno]
            return max(found)[1] if found else None
    return None


def calls(path: Path) -> Iterator[tuple[ast.Call, set[str] | None]]:
    """Where a file says something, and which templates; None where they come from elsewhere."""
    tree = ast.parse(path.read_text())
    constants: Constants = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found = texts(node.value, [])
            if found:
                constants.append((node.targets[0].id, node.lineno, found))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (node.args or node.keywords):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in SAYING and not (name == "OutOfMemory" or ast.unparse(node.func) == "protocol.Message"):
                yield node, texts(node.args[1 if name == "FieldError" else 0], constants)


def findings(path: Path) -> Iterator[tuple[ast.Call, set[str]]]:
    """What a file finds, each with the templates of its text; a remedy in words has no parameters."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"ok", "warning", "problem"}:
            yield node, texts(node.args[1], []) or set()


def templates_of_findings() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for call, found in findings(path):
            yield from found
            if ast.unparse(call.func) != "ok":
                remedies = texts(call.args[2], []) or set()
                yield from (text for text in remedies if not text.startswith("systemctl "))  # a command in any language


def templates_of_code() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for _, found in calls(path):
            yield from found or ()


def templates_of_the_page() -> Iterator[str]:
    environment = Environment(extensions=["jinja2.ext.i18n"], autoescape=True)
    for path in (PACKAGE / "web" / "templates").glob("*.html"):
        found: Any = environment
        for _, _, text in found.extract_translations(path.read_text()):
            first = text[0] if isinstance(text, tuple) else text
            if first:
                yield first


def templates_of_fields() -> Iterator[str]:
    for kind in (Txt2Img, Img2Img, Lora, Settings, Retention, Web, Cluster):
        for field in kind.model_fields.values():
            yield from filter(None, (field.title, field.description))


def templates_of_help(command: Any = None) -> Iterator[str]:
    command = command or typer.main.get_command(app)
    yield from filter(None, (text for text, _ in paragraphs(command.help or "")))
    yield from filter(None, (getattr(param, "help", None) for param in command.params))
    for name, inner in getattr(command, "commands", {}).items():
        if name not in OLD_NAMES:
            yield from templates_of_help(inner)


def said() -> set[str]:
    return {
        *templates_of_code(),
        *templates_of_findings(),
        *templates_of_the_page(),
        *templates_of_fields(),
        *templates_of_help(),
        *SYSTEM,
    }


def words(template: str) -> str:
    return re.sub(r"\{\w+(:,)?\}", "", template)


def test_all_that_can_be_said_is_in_the_chinese_catalog_and_nothing_else() -> None:
    chinese = messages.catalog("zh")
    spoken = {text for text in said() if re.search("[A-Za-z]", words(text))}
    assert sorted(spoken - set(chinese)) == []
    assert sorted(set(chinese) - said()) == []


def test_a_translation_has_the_parameters_of_the_english() -> None:
    for english, chinese in messages.catalog("zh").items():
        assert sorted(messages.slots(english)) == sorted(messages.slots(chinese)), english


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_message_is_a_template_with_its_values(path: Path) -> None:
    """An f-string there would be English in every language, and a missing value would show its name."""
    for call, found in calls(path):
        assert not any(isinstance(each, ast.JoinedStr | ast.BinOp) for each in call.args[:1]), ast.unparse(call)
        is_whole = not any(isinstance(each, ast.Starred) for each in call.args)
        for template in found or ():
            if is_whole and "FieldError" not in ast.unparse(call.func):
                assert len(messages.slots(template)) == len(call.args) - 1, ast.unparse(call)
    for call, found in findings(path):
        before = 2 if ast.unparse(call.func) == "ok" else 3
        assert {len(messages.slots(template)) for template in found} <= {len(call.args) - before}, ast.unparse(call)
