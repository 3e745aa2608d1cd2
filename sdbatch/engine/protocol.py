"""What passes between the service and whoever renders: a job to draw, then what becomes of it, event by event.

Over a pipe each is one line of JSON. Nothing else is shared but the attempt's folder, into which the renderer writes
pictures under their final names, complete from the moment they have them. A renderer may hold several jobs: at
`Sampled` it can be given another, while the last one's pictures are decoded and written. So each event says whose.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter

from sdbatch.job.cells import Cells
from sdbatch.job.parameters import AnyJob
from sdbatch.messages import pack, unpack

# What people are told; it keeps its template and parameters on the way.
Text = Annotated[str, PlainValidator(unpack), PlainSerializer(pack)]


class Message(BaseModel):
    """The base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RendererConfig(Message):
    """The settings of a renderer."""

    device: str  # auto, cpu, cuda, cuda:1 ...
    checksums: Path  # the cache of checkpoints' digests; what was converted lies beside it
    converted_bytes: int = 0  # what conversions may take
    model_cache_bytes: int = 0  # what loaded models may take
    safety_checker: str = "auto"  # auto, off, or the folder of one
    watermark: str = ""
    batching: Literal["job", "shared", "fixed"] = "job"
    batch_rows: int = 32  # at most, in one pass of the network
    compile: Literal["off", "auto", "max"] = "off"
    channels_last: Literal["off", "on", "auto"] = "off"
    attention: Literal["default", "auto", "flash", "efficient", "cudnn", "math"] = "default"
    cpu_threads: str = "default"  # or auto, or a number
    cpu_autocast: Literal["float32", "bfloat16"] = "float32"  # what `precision: autocast` means on a CPU
    near: Path | None = None  # where copies of conversions lie on this machine's own disk

    @property
    def capacity(self) -> int:
        """How many jobs it samples at a time: enough to fill a pass with jobs of one image, each of two rows."""
        return 1 if self.batching == "job" else max(2, self.batch_rows // 2)


def part_of(job_id: str, number: int) -> str:
    """The id of a part of a job; no folder's name has a slash in it."""
    return f"{job_id}/{number}"


def job_of(part_id: str) -> str:
    """The id of the job that a part is of."""
    return part_id.partition("/")[0]


class Draw(Message):
    """A job to run, or a part of one. All paths are resolved; the renderer looks nothing up."""

    job_id: str  # comes back in each event; a part of a job has one of its own
    job: AnyJob
    lines: list[str] | None  # of from_file
    changes: list[dict[str, Any]] = [{}]  # of each cell, the fields in which its job differs
    axes: tuple[tuple[str, ...], ...] = ()  # the fields that vary over the cells
    other_files: dict[int, dict[str, Any]] = {}  # of the cells that need others (`Files`)
    init: Path | None  # the init image's copy
    max_init_pixels: int  # of the init image as it comes
    max_pixels: int  # of a picture drawn
    folder: Path  # where the renderer writes: samples/00000.png, grid-0000.png, notes.json
    ckpt: Path
    config: Path
    vae: Path | None = None  # in place of the checkpoint's own autoencoder
    loras: tuple[tuple[Path, float], ...] = ()  # files and weights: the job's loras, and those that its prompts name
    embeddings: dict[str, Path] = {}  # those that its prompts may name, by name
    start_at: int  # the first picture that is missing
    images: tuple[int, ...] | None = None  # of a part: these, by their numbers in the job, and no grid; `start_at` is 0
    preview_steps: int = 0  # a rough look at what is sampled after each so many steps; 0: none
    halt: Path  # once this is there, no further batch is begun
    cancel: Path  # once this is there, no further step is made

    @cached_property
    def cells(self) -> Cells:
        """What it draws, one cell after another."""
        return Cells(self.job, self.lines, self.changes, self.axes)

    def of_cell(self, number: int) -> "Draw":
        """A cell as a job of its own, in the same folder."""
        if not self.changes[number] and number not in self.other_files:
            return self
        own = Files.model_validate(self.other_files.get(number, {}))
        files = {name: getattr(own, name) for name in own.model_fields_set}
        return self.model_copy(update={**files, "job": self.cells.job_of(number), "changes": [{}], "other_files": {}})


class Files(Message):
    """The files of a cell, as far as they are others than the first one's."""

    init: Path | None = None
    ckpt: Path = Path()
    config: Path = Path()
    vae: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: dict[str, Path] = {}


class Ready(Message):
    """The first message: the renderer runs, its device works, and the model is loaded."""

    type: Literal["ready"] = "ready"


class Unfit(Message):
    """Sent instead of Ready, as the last message: why nothing can be generated here."""

    type: Literal["unfit"] = "unfit"
    text: Text


class Loaded(Message):
    """The job's model is loaded."""

    type: Literal["loaded"] = "loaded"
    job_id: str
    cell: int = 0  # the first of those that are drawn with it
    seconds: float  # it took; 0 if it was there
    checkpoint_sha256: str
    vae_sha256: str = ""
    lora_sha256: tuple[str, ...] = ()
    embedding_sha256: dict[str, str] = {}  # of those that the prompts do name
    device: str
    versions: dict[str, str]
    computed_in: str = "float32"  # or float16, bfloat16
    safety_checker: Path | None = None  # that looks at the pictures
    watermark: str = ""


class Stepped(Message):
    """The sampler made a step of the batch that starts with image `first`."""

    type: Literal["stepped"] = "stepped"
    job_id: str
    first: int
    step: int
    steps: int


class StagedSample(Message):
    """A sample is in the job's folder, durably."""

    type: Literal["sample"] = "sample"
    job_id: str
    file: str
    sha256: str
    iteration: int
    index: int
    prompt: str


class StagedGrid(Message):
    """The grid is in the job's folder."""

    type: Literal["grid"] = "grid"
    job_id: str
    file: str
    sha256: str


class Sampled(Message):
    """Its last sampling is nearly over, and another job may be handed over; Finished, or Failed, follows later."""

    type: Literal["sampled"] = "sampled"
    job_id: str


class Finished(Message):
    """All images of the job are staged."""

    type: Literal["finished"] = "finished"
    job_id: str
    seconds: float
    notes: list[Text]
    peak_bytes: int | None = None  # allocated on the GPU at most, models and all; a CPU's are not counted
    free_bytes: int | None = None  # of the GPU's memory, whoever uses the rest
    total_bytes: int | None = None


class Halted(Message):
    """Stopped between two batches as requested; staged images stay."""

    type: Literal["halted"] = "halted"
    job_id: str


class Failed(Message):
    """The job failed because of itself or because of the disk; the renderer is well."""

    type: Literal["failed"] = "failed"
    job_id: str
    fault: Literal["job", "disk"]
    text: Text


class Ended(Message):
    """The renderer's process is gone; not said by itself."""

    type: Literal["ended"] = "ended"
    text: Text


class Tick(Message):
    """Nothing happened for a moment, so the service can do other work."""

    type: Literal["tick"] = "tick"
    job_id: str = ""


Said = Loaded | Stepped | StagedSample | StagedGrid | Sampled | Finished | Halted | Failed
Event = Ready | Unfit | Said | Ended | Tick
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class Renderer(Protocol):
    """The supervisor's view of one renderer, from its start to its end. Its events come out of the one queue."""

    def draw(self, draw: Draw) -> None:
        """Hand a job over, and return at once. If the renderer can't take it any more, `Ended` follows."""

    def stop(self) -> None:
        """End it, whatever it does; its jobs can be drawn again. Later events of it are dropped."""


class Source(Protocol):
    """The queue of the events of all renderers of an engine."""

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[Renderer, Event]:
        """The next event, and its renderer.

        Raises:
            queue.Empty: there was none for `timeout` seconds.
        """


class Engine(Protocol):
    """The service's view of the renderers, wherever they run.

    Attributes:
        ahead: how many jobs are prepared while all seats are busy.
        capacity: how many jobs a renderer samples at a time.
    """

    ahead: int
    capacity: int

    @property
    def devices(self) -> Sequence[str]:
        """A seat each. They may change: those of a cluster come and go with its nodes."""

    @property
    def problem(self) -> str:
        """Why there are no devices; empty where there are, or where they are just being looked for."""

    @property
    def events(self) -> Source:
        """One queue for all."""

    def start(self, device: str) -> Renderer:
        """Start a renderer, and return at once. Its first event is `Ready` or `Unfit`.

        Raises:
            EngineDown: none can be started now.
        """

    def close(self) -> None:
        """End what it needs beside the renderers, which are stopped already."""
