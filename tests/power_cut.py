"""What a disk may hold after the power went: the operations of a run, replayed with unsynced ones missing.

The rules are those of ALICE (Pillai et al., OSDI 2014, "All File Systems Are Not Created Equal"), without what any one
filesystem promises on top: the bytes of a file are safe once it was synced; a name is safe once its folder was; of what
is not safe, any part may be missing, in any order. A rename is whole or not at all.
"""

import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sdbatch.spool.attempts import ATTEMPT
from sdbatch.spool.handover import RETIRED
from sdbatch.storage.files import BUSY_PREFIX, TRIAL_PREFIX

RETIREMENT = re.compile(r"\d{8}T\d{6}Z-.*\.[0-9a-f]{32}")
FEW = 5  # unsynced operations of which every combination is tried
INCIDENTAL = ("status.json", "lock")  # never synced, and worth nothing


@dataclass(eq=False)
class File:
    """A file's life: what was written, step by step; the first `safe` of it survives."""

    writes: list[tuple[int, bytes]] = field(default_factory=list)  # when, and the content then
    syncs: list[int] = field(default_factory=list)

    def versions(self, moment: int) -> list[bytes]:
        """What it may hold if the power goes at a moment: one content if synced, else anything up to the last."""
        written = [data for when, data in self.writes if when <= moment]
        safe = max((when for when in self.syncs if when <= moment), default=-1)
        if not written:
            return [b""]
        if safe >= self.writes[len(written) - 1][0]:
            return [written[-1]]
        return [b"", written[-1][: len(written[-1]) // 2], written[-1]]


@dataclass(eq=False)
class Folder:
    """A folder, by what it is and not by its name."""

    syncs: list[int] = field(default_factory=list)


Node = File | Folder


@dataclass
class Change:
    """A change of names: `node` leaves one entry, takes another, or both in one go."""

    when: int
    node: Node
    leaves: tuple[Folder, str] | None = None
    takes: tuple[Folder, str] | None = None

    def is_safe(self, moment: int) -> bool:
        """Whether it survives the power going at `moment`."""
        folder, _ = self.takes or self.leaves or (Folder(), "")
        return any(self.when < sync <= moment for sync in folder.syncs)

    @property
    def is_incidental(self) -> bool:
        """Whether nobody would miss what it names so."""
        return any(place is not None and place[1] in INCIDENTAL for place in (self.leaves, self.takes))

    @property
    def is_retirement(self) -> bool:
        """Whether it puts a file as it came where that is looked at for a while."""
        return self.takes is not None and (self.takes[1] == RETIRED or RETIREMENT.fullmatch(self.takes[1]) is not None)

    @property
    def is_trial(self) -> bool:
        """Whether it only tries what the folders can do."""
        return any(place is not None and place[1].startswith(TRIAL_PREFIX) for place in (self.leaves, self.takes))


class Recording:
    """Follows what a process does below a folder: names by audit hooks, syncs by standing in front of os.fsync."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.top = Folder()
        self.entries: dict[tuple[Folder, str], Node] = {}
        self.before: dict[tuple[Folder, str], Node] = {}
        self.changes: list[Change] = []
        self.now = 0
        self._dirty: dict[str, File] = {}
        self._scan(self.root, self.top)
        self.before = dict(self.entries)

    def _scan(self, path: str, folder: Folder) -> None:
        for entry in os.scandir(path):
            node: Node = Folder() if entry.is_dir() else File([(0, Path(entry.path).read_bytes())], [0])
            self.entries[folder, entry.name] = node
            if isinstance(node, Folder):
                self._scan(entry.path, node)

    def start(self) -> None:
        """From now on, in this process, for good: audit hooks can't be taken back."""
        fsync = os.fsync

        def synced(handle: int) -> None:
            fsync(handle)
            self._sync(_name_of(handle))

        os.fsync = synced  # type: ignore[assignment]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An operation is about to happen."""
        match event:
            case "open" if isinstance(arguments[2], int) and arguments[2] & os.O_CREAT:
                self._create(self._full(arguments[0]))
            case "os.rename":
                self._move(self._full(arguments[0], arguments[2]), self._full(arguments[1], arguments[3]))
            case "os.link":
                source, target = self._full(arguments[0], arguments[2]), self._full(arguments[1], arguments[3])
                if not os.path.lexists(target):
                    self._note_content(source)
                    self._change(self._at(source), takes=target)
            case "os.remove" | "os.rmdir":
                path = self._full(arguments[0], arguments[1])
                self._change(self._at(path), leaves=path)
            case "os.mkdir":
                path = self._full(arguments[0], arguments[2])
                if not os.path.lexists(path):
                    self._change(Folder(), takes=path)

    def _full(self, path: Any, handle: int = -1) -> str:
        """The whole path of a name, which may be relative to a folder's handle."""
        if isinstance(path, int):
            return ""
        name = os.fsdecode(path)
        return f"{_name_of(handle)}/{name}" if handle >= 0 else name

    def _place(self, path: str) -> tuple[Folder, str] | None:
        """A path as a folder and a name in it; None outside the root."""
        if not path.startswith(self.root + "/"):
            return None
        *folders, name = path[len(self.root) + 1 :].split("/")
        folder = self.top
        for part in folders:
            inner = self.entries.get((folder, part))
            if not isinstance(inner, Folder):
                return None
            folder = inner
        return folder, name

    def _at(self, path: str) -> Node | None:
        place = self._place(path)
        return self.top if path == self.root else self.entries.get(place) if place else None

    def _create(self, path: str) -> None:
        node = self._at(path)
        if node is None and self._place(path):
            node = File()
            self._change(node, takes=path)
        if isinstance(node, File):
            self._dirty[path] = node

    def _move(self, source: str, target: str) -> None:
        node = self._at(source)
        if node is None:
            return  # it fails
        self._note_content(source)
        if isinstance(node, File) and source in self._dirty:
            self._dirty[target] = self._dirty.pop(source)
        self._change(node, leaves=source, takes=target)

    def _change(self, node: Node | None, leaves: str = "", takes: str = "") -> None:
        places = (self._place(leaves) if leaves else None, self._place(takes) if takes else None)
        if node is None or not any(places):
            return
        self.now += 1
        self.changes.append(Change(self.now, node, *places))
        if places[0]:
            del self.entries[places[0]]
        if places[1]:
            self.entries[places[1]] = node

    def _note_content(self, path: str) -> None:
        """What an open or closed file that was written to holds now."""
        if (node := self._dirty.get(path)) is not None and Path(path).is_file():
            data = Path(path).read_bytes()
            if not node.writes or node.writes[-1][1] != data:
                self.now += 1
                node.writes.append((self.now, data))

    def _sync(self, path: str) -> None:
        node = self._at(path)
        if node is None:
            return
        self._note_content(path)
        self.now += 1
        node.syncs.append(self.now)


def _name_of(handle: int) -> str:
    """The path that a handle was opened by."""
    return str(Path(f"/proc/self/fd/{handle}").readlink())


Tree = dict[str, bytes | None]  # path: content, None for a folder


def trees_after_a_power_cut(recording: Recording, seed: int) -> Iterator[Tree]:
    """What the disk may hold, for a power cut at every moment of the recording; some trees come twice.

    What is never synced is there as it was last, or all of it is missing: its combinations would be without end.
    """
    dice = random.Random(seed)
    incidental = {id(change.node) for change in recording.changes if change.is_incidental}  # their drafts too
    for moment in range(recording.now + 1):
        happened = [change for change in recording.changes if change.when <= moment]
        unsafe = [c for c in happened if not c.is_safe(moment) and id(c.node) not in incidental]
        never_synced = [c for c in happened if not c.is_safe(moment) and (c.is_retirement or c.is_trial)]
        unsafe = [c for c in unsafe if c not in never_synced]
        for kept in _choices(unsafe, dice):
            lost = {id(change) for change in unsafe} - {id(change) for change in kept}
            survived = [change for change in happened if id(change) not in lost]
            for how_much in range(3):
                yield _tree(recording, survived, moment, how_much)
        without = {id(change) for change in (*unsafe, *never_synced)}
        yield _tree(recording, [change for change in happened if id(change) not in without], moment, 0)


def one_of_each(trees: Iterator[Tree], seed: int) -> list[Tree]:
    """Of trees that differ only in what no recovery looks at, one, by lot."""
    alike: dict[tuple[tuple[str, bytes | None], ...], list[Tree]] = {}
    for tree in trees:
        alike.setdefault(tuple(_that_matters(tree)), []).append(tree)
    dice = random.Random(seed)
    return [dice.choice(alike[key]) for key in sorted(alike, key=repr)]


def _that_matters(tree: Tree) -> Iterator[tuple[str, bytes | None]]:
    """Drafts are removed unread; what is left of an attempt is nothing to a job that is done."""
    for path, content in sorted(tree.items()):
        name = path.rpartition("/")[2]
        if name in INCIDENTAL or (path.startswith("jobs/done/") and name.startswith(ATTEMPT)):
            continue
        yield path, b"" if content and name.startswith(BUSY_PREFIX) else content


def _choices(unsafe: list[Change], dice: random.Random) -> Iterator[list[Change]]:
    """Which of the unsafe changes survive: every combination of a few, a wide choice of many."""
    if len(unsafe) <= FEW:
        for picks in product((False, True), repeat=len(unsafe)):
            yield [change for change, pick in zip(unsafe, picks, strict=True) if pick]
        return
    for i in range(len(unsafe) + 1):
        yield unsafe[:i]
        yield unsafe[i:]
        yield unsafe[:i] + unsafe[i + 1 :]
        yield unsafe[i : i + 1]
    for _ in range(16):
        yield [change for change in unsafe if dice.random() < 0.5]


def _tree(recording: Recording, changes: list[Change], moment: int, how_much: int) -> Tree:
    """The names after `changes`, and of each unsynced file nothing, half or all (`how_much` 0, 1, 2)."""
    entries = dict(recording.before)
    for change in changes:
        if change.leaves and entries.get(change.leaves) is change.node:
            del entries[change.leaves]
        if change.takes:
            entries[change.takes] = change.node
    inside: dict[Folder, list[tuple[str, Node]]] = {}
    for (place, name), node in entries.items():
        inside.setdefault(place, []).append((name, node))
    tree: Tree = {}

    def lay(folder: Folder, path: str) -> None:
        for name, node in inside.get(folder, ()):
            if isinstance(node, Folder):
                tree[path + name] = None
                lay(node, path + name + "/")
            else:
                versions = node.versions(moment)
                tree[path + name] = versions[min(how_much, len(versions) - 1)]

    lay(recording.top, "")
    return tree


def write_tree(tree: Tree, folder: Path) -> None:
    """Lay a tree out on the disk."""
    folder.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
