"""What the commands, the service and a job file's errors say, in Chinese. They say it in English, with names in it.

said.json has their sentences, the parts that change in braces; a line that none of them fits stays as it is.
"""

import json
import re
from functools import cache
from importlib.resources import files

LONGEST = 500  # characters of a line that is looked at: it may be anybody's
_PARTS = dict.fromkeys(("count", "line", "number", "step", "low", "high", "most", "width", "height"), r"-?[\d.,]+")
_PARTS |= {"field": r"\w+(?:, \w+)*", "file": r"[^\s:]+", "what_said": r"(?:waits|lies) .+?"}
_PARTS["size_said"] = r"\d+x\d+|the size of init_img, which is not there yet"


def in_chinese(text: str) -> str:
    """A text of one or more lines."""
    return "\n".join(_retold(line) if len(line) <= LONGEST else line for line in text.split("\n"))


@cache
def sentences() -> dict[str, str]:
    """Chinese by English, the more general ones last."""
    text = files("sdbatch.web").joinpath("said.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(_expression(english)), chinese) for english, chinese in sentences().items()]


def _expression(english: str) -> str:
    literals = re.split(r"\{(\w+)\}", english)
    return "".join(
        f"(?P<{part}>{_PARTS.get(part, '.+?')})" if is_part else re.escape(part)
        for part, is_part in zip(literals, (False, True) * len(literals), strict=False)
    )


def _retold(line: str) -> str:
    for pattern, chinese in _patterns():
        if found := pattern.fullmatch(line):
            return chinese.format(
                **{name: _retold(part) if name.endswith("said") else part for name, part in found.groupdict().items()}
            )
    return line
