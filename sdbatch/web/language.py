"""The visitor's language: messages are put into it where they are shown."""

from flask import Blueprint, Flask, g, redirect, request, session
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from sdbatch.history.records import PictureRecord
from sdbatch.messages import Message, shown, unpack
from sdbatch.storage.reason import message_of
from sdbatch.telemetry.status_file import duration
from sdbatch.web.site import own_path, site

NAMES = {"en": "English", "zh": "中文"}
HTML_NAMES = {"en": "en", "zh": "zh-Hans"}
LONGEST = 500  # characters of what a browser prefers: it is looked at before the login

pages = Blueprint("language", __name__)


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


def translate(template: str, /, **values: object) -> str:
    """A message of the page, in the visitor's language."""
    return told(Message.of(template, values))


def told(text: object) -> str:
    """What was said elsewhere, also packed as JSON, in the visitor's language."""
    return shown(unpack(text), language())


def why_failed(picture: PictureRecord) -> str:
    """The reason of a failed job, in the visitor's language."""
    return told(message_of(site().root.failed / picture.job, picture.reason))


def install(app: Flask) -> None:
    """Give templates `_`, `told` and `duration`, and visitors a switch."""
    app.jinja_env.globals |= {
        "_": translate,
        "told": told,
        "why_failed": why_failed,
        "duration": lambda seconds: told(duration(seconds)),
    }
    app.context_processor(lambda: {"language": language(), "html_language": HTML_NAMES[language()], "languages": NAMES})
    app.register_blueprint(pages)


@pages.post("/language/<name>")
def choose(name: str) -> Response:
    """Remember the visitor's language, and show the same page in it."""
    if name in NAMES:
        session["language"] = name
    return redirect(own_path(request.form.get("back", "")), 303)
