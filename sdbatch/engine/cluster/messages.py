"""What passes between the service and the process that speaks with Ray: a line of JSON for each order, and for news."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from sdbatch.engine.protocol import Message, RendererConfig, Text


class ClusterConfig(Message):
    """Which cluster, and what of it is used.

    Attributes:
        address: of the cluster's head, or `auto`; empty starts a Ray on this machine alone.
        seats: at most; None is all that there is room for.
        resources: what a seat takes of its node, by Ray's names; empty: a GPU, or the CPUs.
        nodes: patterns of the names of nodes; empty: all.
        devices: auto, cuda, or a cpu for each seat of a node.
        near: a folder on each node's own disk for copies of converted checkpoints.
        ckpt: the model that all nodes must see alike, where there is one.
    """

    root: Path
    renderer: RendererConfig
    program: str  # the module that is a renderer
    address: str = ""
    seats: int | None = None
    resources: dict[str, float] = Field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    devices: str = "auto"
    near: Path | None = None
    ckpt: Path | None = None


class Begin(Message):
    """Start a renderer on a seat. `run` is its number from now on."""

    do: Literal["begin"] = "begin"
    run: int
    seat: str
    preload: tuple[Path, ...] = ()


class HandOver(Message):
    """A job for a renderer, as its request is written."""

    do: Literal["hand over"] = "hand over"
    run: int
    draw: str


class End(Message):
    """End a renderer, whatever it does."""

    do: Literal["end"] = "end"
    run: int


class Seats(Message):
    """The seats that there are now, and why there are none."""

    type: Literal["seats"] = "seats"
    names: tuple[str, ...]
    problem: Text = ""


class Told(Message):
    """An event of a renderer, as it wrote it."""

    type: Literal["told"] = "told"
    run: int
    event: str


class Printed(Message):
    """A line that a renderer printed."""

    type: Literal["printed"] = "printed"
    run: int
    text: str


Order = Begin | HandOver | End
News = Seats | Told | Printed
ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="do")])
NEWS: TypeAdapter[News] = TypeAdapter(Annotated[News, Field(discriminator="type")])
