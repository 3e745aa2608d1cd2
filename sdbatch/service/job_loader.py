"""Turns a claimed file into a task that is ready to run: parsed, checked against the limits, with all its files."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

from sdbatch.config.settings import Limits
from sdbatch.errors import JobError
from sdbatch.inputs.found_inputs import FoundInputs, Place
from sdbatch.inputs.named_images import NamedImages
from sdbatch.job import reader
from sdbatch.job.cells import check_limits
from sdbatch.job.parameters import MAX_SEED, RANDOM
from sdbatch.messages import Message, joined
from sdbatch.prompts.dynamic import Pair
from sdbatch.prompts.sources import cells_of
from sdbatch.service.cell_files import FoundFiles
from sdbatch.service.task import Task
from sdbatch.spool.claim import Claim
from sdbatch.spool.inputs import InputStager
from sdbatch.spool.publish import make_outdir
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.storage.root import FILES, Root


class JobLoader:
    """Remembers the last file it read, because the jobs of one file come one after another."""

    def __init__(self, root: Root, spool: Spool, inputs: InputStager, limits: Limits) -> None:
        self.root, self.spool, self.inputs, self.limits = root, spool, inputs, limits
        self.images = NamedImages(root, inputs.inbox, inputs.wait_seconds)
        self._parsed: tuple[bytes, str, list[reader.Parsed]] = (b"", "", [])
        self._said: dict[Path, Pair | None] = {}  # what staged images say that they show

    def read(self, claim: Claim) -> tuple[bytes, reader.Parsed]:
        """The file of a claim and its job.

        Raises:
            JobError: it is invalid, or was cancelled.
        """
        self.spool.require_own(claim)
        self.spool.raise_if_cancelled(claim)
        self.spool.make_own(claim)
        parsed = self._read(claim)
        if parsed.error is not None:
            raise parsed.error
        return self._parsed[0], parsed

    def forget(self, claim: Claim) -> None:
        """The job waits no longer for what it names."""
        self.inputs.forget(claim)
        self.images.forget(claim)
        folder = self.spool.folder(claim)
        self._said = {path: said for path, said in self._said.items() if not path.is_relative_to(folder)}

    def may_need_others(self, parsed: reader.Parsed) -> bool:
        """Whether it names a file that a job before it may still have to draw."""
        named = [getattr(parsed.job, name, "") for name in FILES]
        paths = [os.path.normpath(self.root.path / name).casefold() for name in named if name]
        places = [f"{place}/".casefold() for place in (self.root.outputs, self.root.done)]
        return any(path.startswith(place) for path in paths for place in places)

    def find_files(self, source: bytes, parsed: reader.Parsed, claim: Claim, now: float) -> Task:
        """The job with what it names found, copied and bounded.

        Raises:
            JobError: it can't be drawn.
            InputsPending: a file that it names is still on its way.
        """
        try:
            return self._with_files(source, parsed, claim, now)
        except JobError as error:
            told = [Message("{file_name}: {problem}", claim.file, line) for line in parsed.placed(error)]
            # A file may be missing because of a part of the job file that was not understood.
            raise JobError(joined("\n", [*told, *(Message("note: {note}", note) for note in parsed.notes)])) from error

    def _with_files(self, source: bytes, parsed: reader.Parsed, claim: Claim, now: float) -> Task:
        """The job with all files that it names."""
        folder = self.spool.folder(claim)
        job = parsed.job
        assert job is not None, "either a job or an error"
        self.inputs.begin()
        named_files = FoundInputs(self.inputs, self.images, Place(folder, claim, parsed.kept, now), self._said)
        cells = cells_of(parsed.template, named_files, self._seed(claim, job.seed))
        check_limits(cells, self.limits)
        named = dict.fromkeys(name for each in range(len(cells)) if (name := cells.value("init_img", each)))
        staged = {
            name: self.inputs.stage("init_img", name, folder, claim, parsed.kept, now, number)
            for number, name in enumerate(named)
        }
        found = FoundFiles(self.root, {name: each.path for name, each in staged.items()})
        self.forget(claim)
        files_of = [found.of(cells, number) for number in range(len(cells))]
        return Task(
            claim=claim,
            source=source,
            cells=cells,
            parent=parsed.parent,
            inputs=[*staged.values(), *named_files.staged],
            files=files_of,
            notes=(*parsed.notes, *found.notes),
            filled=parsed.template.defaults if cells.axes else parsed.filled,
            written=parsed.template.written(claim.seed) if cells.axes else {},
            outdir=make_outdir(self.root.output_folder(job.outdir), job.skip_save),
        )

    def _seed(self, claim: Claim, asked: int) -> int:
        """The seed; one by lot is noted with the claim, and stays, however often the job is tried."""
        if asked != RANDOM:
            return asked
        if claim.seed is None:
            self.spool.note(claim, seed=secrets.randbelow(MAX_SEED + 1))
        assert claim.seed is not None, "it was just noted"
        return claim.seed

    def _read(self, claim: Claim) -> reader.Parsed:
        """The claim's part of its file; a file of several jobs is split when it is read first."""
        path = self.spool.folder(claim) / claim.file
        data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1)
        if data is None:
            raise JobError("{file}: is a link, a pipe or a device; a job must be a plain file", claim.file)
        if self._parsed[:2] != (data, claim.file):
            self._parsed = (data, claim.file, reader.parse(data, claim.file, self.root.defaults))
        parts = self._parsed[2]
        if len(parts) > 1 and not claim.parts:
            self.spool.split(claim, len(parts))
        if claim.part > len(parts):
            template = (
                "{file}: contains only {count} of {parts} jobs now, and not number {part}: there is nothing left to "
                "run, and this folder may be deleted"
            )
            raise JobError(template, claim.file, len(parts), claim.parts, claim.part)
        part = parts[claim.part - 1]
        if 0 < claim.parts < len(parts):
            more = Message(
                "{file}: contains {count} jobs now, and contained {parts}: only number {part} runs here; "
                "drop the new ones into the inbox as a file of their own",
                claim.file,
                len(parts),
                claim.parts,
                claim.part,
            )
            return replace(part, notes=(*part.notes, more))
        return part
