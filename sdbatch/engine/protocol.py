"""What passes between the service and whoever renders: a job to draw, then what becomes of it, event by event.

Over a pipe each is one line of JSON. Nothing else is shared but the attempt's folder, into which the renderer writes
pictures under their final names, complete from the moment they have them. A renderer may hold several jobs: at
`Sampled` it can be given another, while the last one's pictures are decoded and written. So each event says whose.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter

from sdbatch.job.parameters import AnyJob
from sdbatch.messages import pack, unpack

# What people are told; it keeps its template and parameters on the way.
Text = Annotated[str, PlainValidator(unpack), PlainSerializer(pack)]


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RendererConfig(Message):
    """What a renderer is started with."""

    device: str  # auto, cpu, cuda, cuda:1 ...
    checksums: Path  # the cache of checkpoints' digests; what was converted lies beside it
    converted_bytes: int = 0  # what conversions may take
    model_cache_bytes: int = 0  # what loaded models may take
    safety_checker: str = "auto"  # auto, off, or the folder of one
    watermark: str = ""


class Draw(Message):
    """A job to draw. Paths are resolved; nothing is looked up on the other side."""

    job_id: str
    job: AnyJob
    lines: list[str] | None  # of from_file
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
    halt: Path  # once this is there, no further batch is begun
    cancel: Path  # once this is there, no further step is made


class Ready(Message):
    """The renderer's first word: it runs, its device can be used, and the model to preload is resident."""

    type: Literal["ready"] = "ready"


class Unfit(Message):
    """Its other possible first word, and its last: why nothing can be drawn here."""

    type: Literal["unfit"] = "unfit"
    text: Text


class Loaded(Message):
    """The job's model is resident."""

    type: Literal["loaded"] = "loaded"
    job_id: str
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
    """The sampler made a step of the batch that begins with picture `first`."""

    type: Literal["stepped"] = "stepped"
    job_id: str
    first: int
    step: int
    steps: int


class StagedSample(Message):
    """A sample lies in the job's folder, on disk for good."""

    type: Literal["sample"] = "sample"
    job_id: str
    file: str
    sha256: str
    iteration: int
    index: int
    prompt: str


class StagedGrid(Message):
    """The grid lies there too."""

    type: Literal["grid"] = "grid"
    job_id: str
    file: str
    sha256: str


class Sampled(Message):
    """Its last sampling is over, and another job may be handed over; Finished, or Failed, follows when it will."""

    type: Literal["sampled"] = "sampled"
    job_id: str


class Finished(Message):
    """All of the job is staged."""

    type: Literal["finished"] = "finished"
    job_id: str
    seconds: float
    notes: list[Text]
    peak_bytes: int | None = None  # allocated on the GPU at most, models and all; a CPU's are not counted


class Halted(Message):
    """Stopped between two batches as asked; what is staged stays for later."""

    type: Literal["halted"] = "halted"
    job_id: str


class Failed(Message):
    """The job was not drawn, by its own fault or because the disk failed; the renderer is well."""

    type: Literal["failed"] = "failed"
    job_id: str
    fault: Literal["job", "disk"]
    text: Text


class Tick(Message):
    """Nothing happened for a moment: the service looks after its other business."""

    type: Literal["tick"] = "tick"
    is_starting: bool = False  # no renderer has said its first word yet: what hangs is none of the job's doing


Event = Ready | Unfit | Loaded | Stepped | StagedSample | StagedGrid | Sampled | Finished | Halted | Failed | Tick
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class Engine(Protocol):
    """What the service sees of renderers, wherever they run."""

    def start(self) -> None:
        """Get ready ahead of the first job; returns at once."""

    def is_ready(self) -> bool:
        """Whether a job would be drawn at once; False while a renderer is on its way.

        Raises:
            EngineDown: none can be had for now; the next call tries again.
        """

    def render(self, draw: Draw) -> Generator[Event]:
        """Draw; the stream ends when the job has Finished, Halted or Failed. Closed earlier, the work is dropped.

        Raises:
            EngineDown: no renderer could be had, and the job was not begun.
            RendererDied: the renderer ended; the next call starts another.
        """

    def stop(self) -> None:
        """End the renderer, whatever it does; a job in it can be drawn again."""
