"""Common mistakes in YAML and JSON, each reported on its own line together with the corrected line.

The parsers report where they stopped, which is often after the mistake, and in the terms of a grammar.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import yaml

from sdbatch.errors import printable
from sdbatch.messages import Message

LONGEST = 240  # characters of a line that is shown as it should be
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as YAML counts lines
_ITEM = r"(?P<start>\s*(?:-\s+)?)"
_NAME = r"(?P<name>[A-Za-z_$][\w-]{0,60})"
_PAIR = re.compile(rf"{_ITEM}{_NAME}\s*:[ \t]+(?P<value>\S.*)")
_GLUED = re.compile(rf"{_ITEM}{_NAME}:(?!//)(?P<value>\S.*)")
_EQUALS = re.compile(rf"{_ITEM}{_NAME}\s*=\s*(?P<value>\S.*)")
_WIDE = re.compile(rf"{_ITEM}[\"']?{_NAME}[\"']?\s*[\uff1a\ufe55]\s*(?P<value>.*)")
_QUOTED_AND_COMMA = re.compile(
    rf"{_ITEM}(?P<pair>[\"']?{_NAME}[\"']?\s*:\s*(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'))\s*,"
)
_APOSTROPHES = re.compile(r"'(?:[^']|(?<=\w)'(?=\w))*'")
_INVISIBLE = {
    "\xa0": Message("a non-breaking space"),
    "\u202f": Message("a narrow non-breaking space"),
    "\u2007": Message("a figure space"),
    "\u2009": Message("a thin space"),
    "\u3000": Message("a full-width space"),
    "\u200b": Message("a zero-width space"),
    "\u200e": Message("an invisible character"),
    "\u200f": Message("an invisible character"),
    "\u2060": Message("an invisible character"),
    "\ufeff": Message("an invisible character"),
}
_INVISIBLES = re.compile(f"[{''.join(_INVISIBLE)}]")
_CURLY = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\xab\xbb\uff02\uff07"
_WIDE_IN_JSON = dict(zip("\uff1a\uff0c\uff5b\uff5d\uff3b\uff3d", ":,{}[]", strict=True))
_OTHER_SIGNS = {
    ",": Message("one comma too many; remove it"),
    "}": Message("a value is missing before it, or it is one too many"),
    "]": Message("a value is missing before it, or it is one too many"),
    ";": Message("write a comma, not ;"),
    "=": Message("write a colon, not ="),
    ".": Message("a number begins with a digit: 0.5"),
    "+": Message("a number begins with a digit; remove the +"),
    "`": Message('JSON needs double quotes, "like this"'),
}
_WORDS = {"True": "true", "False": "false", "None": "null", "TRUE": "true", "FALSE": "false", "NULL": "null"}


def lines_of(text: str) -> list[str]:
    """The lines as YAML counts them."""
    return _BREAK.split(text)


def invisible(text: str) -> str:
    """The message about the first invisible character; empty if there is none."""
    found = _INVISIBLES.search(text)
    return Message("{character} (U+{code})", _INVISIBLE[found[0]], f"{ord(found[0]):04X}") if found else ""


def plain_spaces(text: str) -> str:
    """The text without invisible characters."""
    return _INVISIBLES.sub(" ", text).strip()


def in_yaml(lines: Sequence[str], suspects: Iterable[int], texts: Collection[str]) -> tuple[int, str] | None:
    """The first of the suspected lines, from 0, with a mistake, and the message; `texts` are fields of text."""
    for number in dict.fromkeys(suspects):
        if 0 <= number < len(lines) and (said := _slip(lines[number], texts)):
            return number, said
    return None


def in_quotes(line: str) -> str:
    """A line such as `prompt: [a cat` with its value in quotes, if YAML does not read it as text; else empty."""
    found = _PAIR.fullmatch(line.rstrip())
    if not found or _is_one_text(found["value"]):
        return ""
    value = found["value"]
    if _APOSTROPHES.fullmatch(value):
        value = value[1:-1]  # 'a cat's hat': the outer quotes were meant
    elif "\\" in value and len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]  # an invalid escape; the quotes were meant
    elif value[0] == '"' and '"' not in value[1:]:
        value = value[1:]  # the closing one is missing
    quoted = f'"{value}"' if not {'"', "\\"} & set(value) else "'" + value.replace("'", "''") + "'"
    return _shown(f"{found['name']}: {quoted}")


def asks_for_quotes(line: str, texts: Collection[str]) -> str:
    """The message about a value that YAML does not read as text; else empty.

    A bracket in a field outside `texts` may be correct.
    """
    found, mended = _PAIR.fullmatch(line.rstrip()), in_quotes(line)
    if not found or (found["value"][0] in "[{" and found["name"].replace("-", "_") not in texts):
        return ""
    return Message("put the {field} in quotes: {instead}", found["name"], mended) if mended else ""


def _slip(line: str, texts: Collection[str]) -> str:
    """The mistake in a line of YAML, by its field if it has one."""
    line = line.rstrip()
    if said := _foreign_sign(line):
        return said
    for pattern, what in (
        (_QUOTED_AND_COMMA, Message("a comma follows")),
        (_GLUED, Message("a space is missing after the colon")),
        (_EQUALS, Message("use a colon and a space, not =")),
    ):
        if found := pattern.fullmatch(line):
            pair = found["pair"] if pattern is _QUOTED_AND_COMMA else f"{found['name']}: {found['value']}"
            return Message("{field}: {problem}; write {instead}", found["name"], what, _shown(pair))
    if said := asks_for_quotes(line, texts):
        return Message("{field}: {problem}", said.split(" ", 3)[2], said)
    return ""


def _foreign_sign(line: str) -> str:
    """The message about a character that has another meaning in YAML."""
    if line.lstrip().startswith("```"):
        return Message("``` is not YAML; remove the lines with ```")
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Message("a tab at the start of the line; YAML needs spaces there")
    if found := _WIDE.fullmatch(line):
        template = "{field}: a full-width colon; write {instead}"
        return Message(template, found["name"], _shown(found["name"] + ": " + found["value"]))
    head = re.match(r"[^:]*:?.", line)
    if head and (what := invisible(head[0])):
        return Message("{character} in place of a space; write {instead}", what, _shown(plain_spaces(line)))
    return ""


def beside_the_others(lines: Sequence[str], began: int, at: int, problem: str) -> tuple[int, str] | None:
    """A line of YAML that is no field, or is indented more than the fields above, and the message."""
    for number in (began, at - 1) if "':'" in problem else (at - 1,) if "mapping values" in problem else ():
        if 0 <= number < len(lines) and (text := lines[number].strip()) and ":" not in text and text[0] not in "#-.{[":
            said = (
                '"{text}" has no colon; write a field as `name: value`, and indent a line that continues the text above'
            )
            return number, Message(said, printable(text[:60]))
    found = _PAIR.fullmatch(lines[at].rstrip()) if at < len(lines) else None
    if found and found["start"].isspace() and "mapping values" in problem:
        return at, Message(
            "{field}: is indented more than the field above; start both in the same column", found["name"]
        )
    return None


def without_colon(line: str, fields: Collection[str]) -> str:
    """The message about a line such as `prompt a cat`; empty if it does not start with the name of a field."""
    name, _, value = line.strip().partition(" ")
    if not value or name not in fields:
        return ""
    return Message("a colon is missing; write {instead}", _shown(f"{name}: {value.strip()}"))


def in_curly_quotes(text: object) -> str:
    """The message about a text in curly quotes, which YAML takes for part of the text; else empty."""
    if not isinstance(text, str) or len(text) < 2 or text[0] not in _CURLY or text[-1] not in _CURLY:
        return ""
    return Message("the curly quotes {left} {right} are part of the text; straight quotes are not", text[0], text[-1])


def _is_one_text(value: str) -> bool:
    """Whether a value is a single plain scalar to YAML, without anchor or tag."""
    try:
        events = [*islice(yaml.parse(f"k: {value}\n", Loader=yaml.SafeLoader), 9)]
    except yaml.YAMLError:
        return False
    scalars = [event for event in events if isinstance(event, yaml.ScalarEvent)]
    return len(events) == 8 and len(scalars) == 2 and scalars[1].anchor is None and scalars[1].tag is None


def _shown(line: str) -> str:
    return printable(line if len(line) <= LONGEST else line[: LONGEST - 3] + "...")


def in_json(text: str, at: int, problem: str) -> tuple[int, str] | None:
    """The mistake in a JSON text that can't be read after `at`, and its place."""
    rest, before = text[at : at + 100], text[:at].rstrip()
    if before.endswith(",") and rest[:1] in {"}", "]"}:
        return len(before) - 1, Message("a comma with nothing after it; remove it")
    if rest.startswith('"') and "," in problem:
        return len(before) - 1, Message("a comma is missing after it")
    said = _in_a_string(problem) or (_stray(rest) if rest else "")
    if not said and (word := re.match(r"\w+", rest)):
        is_yaml = not before and re.match(r"[\w-]+\s*:\s", rest)
        said = Message("it looks like YAML; name the file .yaml") if is_yaml else _bare_word(word[0], before)
    return (at, said) if said else None


def _stray(rest: str) -> str:
    """The message about a character that is not allowed in JSON."""
    here = rest[0]
    if rest.startswith("```"):
        return Message("``` is not JSON; remove the lines with ```")
    if rest.startswith(("//", "/*", "#")):
        return Message("JSON has no comments; remove it, or name the file .yaml and start comments with #")
    if here == "'":
        return Message('JSON needs double quotes, "like this"')
    if here in _CURLY:
        return Message('a curly quote {character}; JSON needs straight ones, "like this"', here)
    if here in _WIDE_IN_JSON:
        return Message("a full-width {character}; write {instead}", here, _WIDE_IN_JSON[here])
    what = invisible(here)
    return Message("{character}; write a space", what) if what else _OTHER_SIGNS.get(here, "")


def _bare_word(word: str, before: str) -> str:
    if word in _WORDS:
        return Message("write {instead}, not {word}", _WORDS[word], word)
    if before.endswith('"') and not word[0].isdigit():
        return Message('a quote inside a text is written \\"')
    if before.endswith(("{", ",")) and not word[0].isdigit():
        return Message('put the name in double quotes: "{word}"', printable(word[:40]))
    return Message("text goes in double quotes") if before.endswith((":", "[")) and not word[0].isdigit() else ""


def _in_a_string(problem: str) -> str:
    """The mistake inside a JSON string, from the json module's message."""
    if "Invalid control character" in problem:
        return Message("text in JSON is on one line; write \\n for a line break, \\t for a tab")
    if "escape" in problem:
        return Message("a backslash starts an escape in JSON; in a path write / instead, in a text \\\\")
    if "Unterminated" in problem:
        return Message("the closing quote is missing")
    return ""
