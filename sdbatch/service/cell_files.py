"""The files that each cell of a job needs, found; and what is to be said of the cells."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from sdbatch.job.cells import SEEDS, Cells
from sdbatch.job.model_config import ModelConfig, read_model_config
from sdbatch.job.parameters import AnyJob, Txt2Img
from sdbatch.job.remarks import of_size, remarks
from sdbatch.prompts.weights import Stock, find_prompt_weights
from sdbatch.service.task import Files
from sdbatch.storage.root import Root

MOST_NOTES = 20  # of the cells of a job
MOST_NOTED = 200  # cells of which remarks are looked for


class FoundFiles:
    """Cells that differ in nothing but their seeds have the same files, and are looked at once.

    Attributes:
        inits: the copies of the init images, by the names that the job has for them.
        notes: what of the job has no effect.
    """

    def __init__(self, root: Root, inits: Mapping[str, Path]) -> None:
        self.root, self.inits = root, inits
        self.notes: dict[str, None] = {}
        self._known: dict[str, Files] = {}
        self._stock = Stock(root)
        self._weights = cache(root.find_weights)
        self._lora = cache(lambda name: root.find_model("loras", name))
        self._made = cache(read_model_config)

    def of(self, cells: Cells, number: int) -> Files:
        """A cell's files.

        Raises:
            JobError: one of them is not there.
        """
        key = repr({name: value for name, value in cells.changes[number].items() if name not in SEEDS})
        if key not in self._known:
            self._known[key] = self._find(cells.job_of(number), cells)
        return self._known[key]

    def _find(self, job: AnyJob, cells: Cells) -> Files:
        model = self._weights(job.ckpt, job.config, job.vae)
        loras = tuple((self._lora(lora.file), lora.weight) for lora in job.loras)
        has_notes = len(self._known) < MOST_NOTED
        named = find_prompt_weights(job, cells.lines, self.root, self._stock, with_notes=has_notes)
        made = self._made(model.ckpt, model.config)
        if has_notes:
            self._note(job, cells, made, named.notes)
        init = self.inits.get(getattr(job, "init_img", ""))
        embeddings = tuple(named.embeddings.items())
        return Files(model.ckpt, model.config, model.vae, (*loras, *named.loras), embeddings, init)

    def _note(self, job: AnyJob, cells: Cells, made: ModelConfig, more: tuple[str, ...]) -> None:
        if len(self.notes) < MOST_NOTES:
            # Of img2img the renderer knows the size.
            sized = of_size("H, W", job.picture_size, made) if isinstance(job, Txt2Img) else []
            self.notes |= dict.fromkeys((*sized, *remarks(job, cells.lines, made), *more))
