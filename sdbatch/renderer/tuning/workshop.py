"""Where networks get compiled: one or a few at a time, each by a process of its own, kept for the next start.

    state/compiled/<version of torch>/<recipe>.bin       what was made
                                      <recipe>.json      the names of its weights, in their order
                                      <recipe>.failed    instead: why it can't be made; it is not tried again
                                      inductor/          the compiler's own cache

Everything here can be deleted at any time.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from sdbatch.renderer.tuning.recipe import key_of
from sdbatch.storage import files

MOST_KEPT = 64
CORES_EACH = 8  # the compiler uses several
LIMIT_SECONDS = 3600
LAST_WORDS = 2000  # characters of the compiler's that are told

Artifact = Callable[..., list[Tensor]]


class Made:
    """A compiled network: a function of its weights, in this order, and its inputs."""

    def __init__(self, artifact: Artifact, names: list[str]) -> None:
        self.artifact, self.names = artifact, names

    def __call__(self, weights: list[Tensor], *inputs: Tensor) -> Tensor:
        """What the network gives."""
        return self.artifact(*weights, *inputs)[0]


class Workshop:
    """Compiles what is ordered, in threads that wait for the compiler."""

    def __init__(self, state: Path, tell: Callable[[str], None]) -> None:
        self.folder = state / "compiled" / torch.__version__
        self._tell = tell
        self._orders: Queue[tuple[Mapping[str, Any], Callable[[Made], None]]] = Queue()
        self._is_open = False

    def has(self, recipe: Mapping[str, Any]) -> bool:
        """Whether it was made before, so that it will be there in a moment."""
        return self._place(recipe).exists()

    def order(self, recipe: Mapping[str, Any], deliver: Callable[[Made], None]) -> None:
        """Have it made, and delivered in another thread; nothing is, if it can't be made."""
        if not self._is_open:
            self._is_open = True
            self.prepare()
            for _ in range(max(1, len(os.sched_getaffinity(0)) // CORES_EACH)):
                Thread(target=self._work, name="workshop", daemon=True).start()
        self._orders.put((recipe, deliver))

    def prepare(self) -> None:
        """Make the folder; there this process, too, looks up and builds what the compiler made."""
        self._tidy()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "inductor")

    def _place(self, recipe: Mapping[str, Any]) -> Path:
        return self.folder / f"{key_of(recipe)}.bin"

    def _work(self) -> None:
        while True:
            recipe, deliver = self._orders.get()
            place = self._place(recipe)
            try:
                with files.locked(place.with_suffix(".lock")):  # another renderer may want the same
                    if place.exists():
                        self._tell(f"compiled before: {_named(recipe)}")
                    else:
                        self._make(recipe, place)
                if place.exists():
                    deliver(_load(place))
            except Exception as error:  # noqa: BLE001 - whatever it is, the network itself is still there
                self._tell(f"a compiled network can't be used: {error!r:.500}")

    def _make(self, recipe: Mapping[str, Any], place: Path) -> None:
        failed = place.with_suffix(".failed")
        if failed.exists():
            return
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            self._tell("nothing is compiled: there is no C++ compiler (g++) on this machine")
            return
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".recipe") as file:
            file.write(json.dumps(recipe).encode())
            file.flush()
            command = [sys.executable, "-m", "sdbatch.renderer.tuning.compiling", file.name, str(place)]
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
            )
        what = _named(recipe)
        if ended.returncode == 0:
            self._tell(f"compiled: {what}")
            return
        if ended.returncode > 0:  # a signal may come from outside
            files.write_atomically(failed, ended.stderr.encode())
        self._tell(f"can't be compiled: {what}; the compiler's last words:\n{ended.stderr[-LAST_WORDS:]}")

    def _tidy(self) -> None:
        """What other versions of torch made is of no use; of ours the least recently used goes."""
        files.make_dir(self.folder)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        made = sorted(self.folder.glob("*.bin"), key=lambda path: path.stat().st_mtime)
        for path in made[:-MOST_KEPT]:
            path.unlink(missing_ok=True)


def _named(recipe: Mapping[str, Any]) -> str:
    return f"the {recipe['kind']} for {'x'.join(map(str, recipe['inputs'][0][0]))}"


def _load(place: Path) -> Made:
    from torch._inductor.standalone_compile import CompiledArtifact  # noqa: PLC0415 - seconds of imports

    names = json.loads(place.with_suffix(".json").read_bytes())
    with suppress(OSError):
        os.utime(place)  # when it was last used
    return Made(CompiledArtifact.load(path=str(place), format="binary"), names)
