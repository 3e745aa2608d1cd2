"""What passes between the service and whoever renders: a job to draw, then what becomes of it, event by event.

Over a pipe each is one line of JSON. Nothing else is shared but the attempt's folder, into which the renderer writes
pictures under their final names, complete from the moment they have them. A renderer may hold several jobs: at
`Sampled` it can be given another, while the last one's pictures are decoded and written. So each event says whose.
"""

from collections.abc import Sequence
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
    batching: Literal["job", "shared", "fixed"] = "job"
    batch_rows: int = 32  # at most, in one pass of the network


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


class Ended(Message):
    """The renderer's process is gone; not said by itself."""

    type: Literal["ended"] = "ended"
    text: Text


class Tick(Message):
    """Nobody told anything for a moment."""

    type: Literal["tick"] = "tick"
    job_id: str = ""


Said = Loaded | Stepped | StagedSample | StagedGrid | Sampled | Finished | Halted | Failed
Event = Ready | Unfit | Said | Ended | Tick
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class Renderer(Protocol):
    """The supervisor's end of one renderer, from its start to its end. What it tells comes out of the one queue."""

    def draw(self, draw: Draw) -> None:
        """Hand a job over; returns at once. What can't be handed over any more is told by `Ended`."""

    def stop(self) -> None:
        """End it, whatever it does: its jobs can be drawn again. What it still tells is told by nobody."""


class Source(Protocol):
    """Where the events of all renderers of an engine come out."""

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[Renderer, Event]:
        """The next, and who told it.

        Raises:
            queue.Empty: nobody told anything for `timeout` seconds.
        """


class Engine(Protocol):
    """Where renderers run: on this machine, on others, or nowhere.

    Attributes:
        ahead: how many jobs are put at hand for seats that are busy.
    """

    ahead: int

    @property
    def devices(self) -> Sequence[str]:
        """A seat each."""

    @property
    def events(self) -> Source:
        """One queue for all."""

    def start(self, device: str) -> Renderer:
        """Begin a renderer; returns at once. `Ready` or `Unfit` is the first that it tells.

        Raises:
            EngineDown: none can be had for now.
        """
