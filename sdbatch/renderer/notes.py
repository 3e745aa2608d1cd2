"""The renderer's notes on a job, stored in the job's folder, so that they survive the renderer.

A note is written before the image that it is about, so a stopped job ends with the notes of both parts.
"""

import json
from pathlib import Path
from threading import Lock

from sdbatch.messages import pack, unpack
from sdbatch.storage import files

NOTES = "notes.json"


class Notes:
    """The notes of a job, in the order in which they were first made."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / NOTES, Lock()
        try:
            self.texts = [unpack(text) for text in json.loads(self._path.read_bytes())]
        except (FileNotFoundError, ValueError, TypeError):
            self.texts = []

    def add(self, text: str) -> None:
        """Store a note durably, once."""
        with self._lock:
            if text not in self.texts:
                self.texts.append(text)
                files.write_atomically(self._path, json.dumps([*map(pack, self.texts)], indent=1).encode())
