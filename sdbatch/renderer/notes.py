"""What a renderer has to say of a job besides its pictures, kept in the job's folder: it outlives the renderer.

A note is on disk before the picture that it is about, so a job that was stopped ends with the notes of both halves.
"""

import json
from pathlib import Path

from sdbatch.messages import pack, unpack
from sdbatch.storage import files

NOTES = "notes.json"


class Notes:
    """A job's notes, in the order in which they were first made."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NOTES
        try:
            self.texts = [unpack(text) for text in json.loads(self._path.read_bytes())]
        except (FileNotFoundError, ValueError, TypeError):
            self.texts = []

    def add(self, text: str) -> None:
        """Keep it, durably, once."""
        if text not in self.texts:
            self.texts.append(text)
            files.write_atomically(self._path, json.dumps([*map(pack, self.texts)], indent=1).encode())
