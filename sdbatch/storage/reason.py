"""Why a job failed: in English in error.txt, and as a message in claim.json for other languages.

Apart from spool/claim.py, which checks a claim with pydantic: `sdbatch status` reads reasons, and shall answer at once.
"""

import json
from pathlib import Path
from typing import Any

from sdbatch.errors import printable
from sdbatch.messages import Message, unpack
from sdbatch.storage import files

CLAIM, ERROR = "claim.json", "error.txt"
MOST_CLAIM = 16 << 20  # bytes; it names each picture twice


def read_reason(folder: Path, most: int) -> str | None:
    """What error.txt says, at most so many bytes of it; the message that was written there, if it is still the same.

    Raises:
        OSError: it can't be read.
    """
    said = files.read_regular(folder / ERROR, most)
    return None if said is None else message_of(folder, printable(said.decode("utf-8", "replace").strip()))


def kept_messages(folder: Path) -> dict[str, Any]:
    """What claim.json keeps of a job's messages, packed: `error`, `notes`."""
    try:
        claim = json.loads(files.read_regular(folder / CLAIM, MOST_CLAIM) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return claim if isinstance(claim, dict) else {}


def message_of(folder: Path, text: str) -> str:
    """The message that stands as this text in a failed job's error.txt; without one the text."""
    message = unpack(kept_messages(folder).get("error"))
    is_same = isinstance(message, Message) and text and printable(message.strip()).startswith(text)
    return message if is_same else text
