"""English and Chinese. The English sentence is the key: what chinese.json lacks is shown in English.

The page's own sentences are translated where they are shown, those of others retold there.
"""

import json
import re
from functools import cache
from importlib.resources import files

from flask import Blueprint, Flask, g, redirect, request, session
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from sdbatch.telemetry.status_file import duration
from sdbatch.web import translation
from sdbatch.web.site import own_path

NAMES = {"en": "English", "zh": "中文"}
HTML_NAMES = {"en": "en", "zh": "zh-Hans"}
LONGEST = 500  # characters of what a browser prefers: it is looked at before the login

pages = Blueprint("language", __name__)


@cache
def chinese() -> dict[str, str]:
    """Chinese by English."""
    text = files("sdbatch.web").joinpath("chinese.json").read_text(encoding="utf-8")
    sentences: dict[str, str] = json.loads(text)
    return sentences


def language() -> str:
    """As the visitor chose, else what the browser prefers of ours."""
    chosen = session.get("language")
    if chosen in NAMES:
        return str(chosen)
    if "language" not in g:  # asked for each sentence
        g.language = preferred(request.headers.get("Accept-Language", "")).best_match(NAMES, "en")
    return str(g.language)


def preferred(text: str) -> LanguageAccept:
    """What a browser says of languages, as far as it is looked at."""
    return parse_accept_header(text[:LONGEST], LanguageAccept)


def translate(text: str, **values: object) -> str:
    """A sentence in the visitor's language, `{name}` replaced by `values`."""
    sentence = chinese().get(text, text) if language() == "zh" else text
    return sentence.format(**values) if values else sentence


def retell(text: str) -> str:
    """What was said elsewhere, in the visitor's language as far as it is known there."""
    if language() != "zh":
        return text
    return chinese()[text] if text in chinese() else translation.in_chinese(text)


def spell_duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 days."""
    text = duration(seconds)
    return re.sub("an unknown time|[a-z]+", lambda unit: translate(unit[0]), text) if language() == "zh" else text


def install(app: Flask) -> None:
    """Give templates `_`, `told` and `duration`, and visitors a switch."""
    app.jinja_env.globals |= {"_": translate, "told": retell, "duration": spell_duration}
    app.context_processor(lambda: {"language": language(), "html_language": HTML_NAMES[language()], "languages": NAMES})
    app.register_blueprint(pages)


@pages.post("/language/<name>")
def choose(name: str) -> Response:
    """Remember the visitor's language, and show the same page in it."""
    if name in NAMES:
        session["language"] = name
    return redirect(own_path(request.form.get("back", "")), 303)
