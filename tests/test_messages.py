"""Messages: English text, kept with template and parameters until they are shown in the reader's language."""

import json

import pytest

from sdbatch import messages
from sdbatch.errors import JobError
from sdbatch.messages import Message

INNER = Message("{count:,} bytes are left", 1234)


@pytest.fixture(autouse=True)
def _catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = {"{field}: {problem}": "{field} 有错: {problem}", "{count:,} bytes are left": "还剩 {count:,} 字节"}
    monkeypatch.setattr(messages, "catalog", lambda _: chinese)


def test_a_message_is_its_english_text_and_is_shown_in_another_language() -> None:
    message = Message("{field}: {problem}", "init_img", INNER)
    assert message == "init_img: 1,234 bytes are left"
    assert messages.shown(message, "en") == message
    assert messages.shown(message, "zh") == "init_img 有错: 还剩 1,234 字节"


def test_what_the_catalog_lacks_stays_english() -> None:
    assert messages.shown(messages.joined("\n", ["no message", INNER]), "zh") == "no message\n还剩 1,234 字节"


def test_an_error_carries_its_message_into_another() -> None:
    error = JobError("{field}: {problem}", "H", JobError(INNER))
    assert str(error) == "H: 1,234 bytes are left"
    assert messages.shown(error.message, "zh") == "H 有错: 还剩 1,234 字节"


def test_a_message_outlives_json() -> None:
    message = Message("{field}: {problem}", "{problem}", INNER)
    kept = messages.unpack(json.loads(json.dumps(messages.pack(message))))
    assert kept == message
    assert messages.shown(kept, "zh") == messages.shown(message, "zh")
    assert messages.unpack("an old text") == "an old text"


@pytest.mark.parametrize(
    "written", [None, 3, {"template": "{x:999999999}{0.__class__}", "values": {"x": []}}, {"a": 1}]
)
def test_a_stored_message_that_somebody_wrote_does_nothing(written: object) -> None:
    assert len(messages.shown(messages.unpack(written), "zh")) < 100


@pytest.mark.parametrize(
    ("set_", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "SDBATCH_LANG": "zh"}, "zh"),
    ],
)
def test_the_commands_speak_the_language_of_the_locale(
    monkeypatch: pytest.MonkeyPatch, set_: dict[str, str], language: str
) -> None:
    for name in ("SDBATCH_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    assert messages.readers_language() == language
