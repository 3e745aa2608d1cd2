"""The settings, with defaults and limits. sources.py reads their values."""

from copy import copy
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from sdbatch.config.renamed import by_new_names, new_key
from sdbatch.job.parameters import SYNONYMS, Img2Img, Txt2Img, with_our_names
from sdbatch.messages import Message
from sdbatch.storage import root
from sdbatch.storage.file_names import DEFAULT_CONFIG
from sdbatch.storage.named_model import NamedModel
from sdbatch.storage.spelling import as_stored

# Fields that differ for each job, so they have no default for a root.
OF_ONE_JOB = ("prompt", "from_file", "init_img", "name", "priority", "laion400m", "combinatorial")
# Settings that a reload does not change.
NEEDS_RESTART = (
    "engine",
    "devices",
    "ray",
    "default_model",
    "models",
    "lora_folders",
    "embedding_folders",
    "converted_bytes",
    "model_cache_bytes",
    "safety_checker",
    "watermark",
    "batching",
    "batch_rows",
    "compile",
    "channels_last",
    "attention",
    "cpu_threads",
    "cpu_autocast",
    "use_inotify",
    "allow_paths",
    "defaults",
)


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Given(Group):
    """A group that contains only the values that were set."""

    @model_serializer(mode="wrap")
    def _say(self, say: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in say(self).items() if name in self.model_fields_set}


def _without_default(info: FieldInfo) -> tuple[Any, FieldInfo]:
    changed = copy(info)
    changed.default = None
    changed.exclude = None  # no image's text has it, but the root's defaults do
    return info.annotation, changed


def _our_names(given: Any) -> Any:
    """As in a job file, where synonyms and the names of the web UIs' samplers are accepted."""
    if not isinstance(given, dict):
        return given
    renamed = {old: new for old, new in SYNONYMS.items() if new not in given}
    return with_our_names({renamed.get(name) or name: value for name, value in given.items()})


if TYPE_CHECKING:

    class Defaults(_Given):
        """Fields of a job with the values that they have where it doesn't say them."""

else:
    _fields = {name: info for kind in (Img2Img, Txt2Img) for name, info in kind.model_fields.items()}
    _fields = {name: _without_default(info) for name, info in _fields.items() if name not in OF_ONE_JOB}
    _names = {"_names": model_validator(mode="before")(_our_names)}
    Defaults = create_model("Defaults", __base__=_Given, __validators__=_names, **_fields)


class Limits(Group):
    """The limits for one job."""

    pixels: int = Field(2048 * 2048, ge=64 * 64)  # of one picture
    pictures: int = Field(1000, ge=1)  # of one job
    steps: int = Field(1000, ge=1)  # of the sampler
    init_pixels: int = Field(64_000_000, ge=64 * 64)  # of an init image as it comes
    input_bytes: int = Field(100_000_000, ge=1)  # of an init image or prompt file

    def problems(self, pictures: int, steps: int, size: tuple[int, int] | None) -> list[str]:
        """The limits that a job exceeds; `size` is width and height if they are known."""
        found: list[str] = []
        if size and size[0] * size[1] > self.pixels:
            found.append(
                Message(
                    "H, W: {width}x{height} has more than {most:,} pixels, the limit of an image",
                    size[0],
                    size[1],
                    self.pixels,
                )
            )
        if pictures > self.pictures:
            found.append(
                Message(
                    "n_iter, n_samples: {count:,} images; the limit is {most:,} a job",
                    pictures,
                    self.pictures,
                )
            )
        if steps > self.steps:
            found.append(Message("ddim_steps: {count:,} is over the limit of {most:,}", steps, self.steps))
        return found


class HookCommands(Group):
    """Commands to run on events; see hooks.py."""

    on_done: tuple[str, ...] = ()
    on_failed: tuple[str, ...] = ()
    on_idle: tuple[str, ...] = ()
    timeout_seconds: float = Field(30.0, ge=0.1, le=3600)

    def commands(self) -> dict[str, tuple[str, ...]]:
        """The command for each kind of event."""
        return {"on_done": self.on_done, "on_failed": self.on_failed, "on_idle": self.on_idle}


class Retention(Group):
    """When to delete finished jobs; None is never."""

    done_days: float | None = Field(None, gt=0, description="a number of days above 0; null keeps all")
    done_count: int | None = Field(None, ge=0)
    failed_days: float | None = Field(None, gt=0, description="a number of days above 0; null keeps all")
    failed_count: int | None = Field(None, ge=0)
    trash_days: float | None = Field(30, gt=0, description="a number of days above 0; null keeps all")
    outputs: bool = False


UNIX_PROXY = "unix"  # a proxy that uses the page's Unix socket

# status.json and `sdbatch config` show every setting; of this one only that it is set.
Secret = Annotated[str, PlainSerializer(lambda text: "***" if text else "", when_used="json")]


# The hash of a token. The token itself has 256 bits, so nobody finds it by trying.
TOKEN, TOKENS = r"^(sha256:[0-9a-f]{64})?$", "a line that `sdbatch web --new-token` prints"


class Web(Group):
    """The web page, `sdbatch web`."""

    bind: str = Field(
        "127.0.0.1:8123",
        pattern=r"^(unix:/.+|.+:\d{1,5})$",
        description="an address and port, such as 127.0.0.1:8123, or unix:/run/sdbatch/web.sock",
    )
    password: Secret = ""  # its hash, as `sdbatch web --hash-password` makes it
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()  # whose X-Forwarded-* headers are believed
    token: Secret = Field("", pattern=TOKEN, description=TOKENS)
    metrics_token: Secret = Field("", pattern=TOKEN, description=TOKENS)
    sdapi: bool = False
    sdapi_wait_seconds: float = Field(3600.0, ge=1, le=86400)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            if proxy != UNIX_PROXY:
                try:
                    ip_network(proxy)
                except ValueError as error:
                    raise ValueError(
                        Message("{proxy} must be an address, a network such as 10.0.0.0/8, or unix", proxy)
                    ) from error
        return proxies


class Cluster(Group):
    """Which machines `engine: ray` uses; see docs/cluster.md."""

    address: str = Field(
        "",
        pattern=r"^(|auto|[^\s:/]+:\d{1,5})$",
        description="auto, an address and port such as 10.0.0.1:6379, or empty for a Ray on this machine alone",
    )
    seats: Literal["all"] | Annotated[int, Field(ge=1)] = Field("all", description="all, or a number from 1")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Ray's names of what a seat takes, with amounts above 0, such as {GPU: 1, CPU: 4}"
    )
    nodes: tuple[str, ...] = ()
    local_models: Path | None = None


class DefaultModel(Group):
    """The model that jobs use by default; it is loaded at the start."""

    ckpt: str = "models/ldm/stable-diffusion-v1/model.ckpt"  # empty: none
    config: str = DEFAULT_CONFIG


THREADS = "default, auto, or a number from 1 to 999"


class Environment(EnvSettingsSource):
    """The SDBATCH_* variables, also those with old names."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        prefix = self.env_prefix.lower()
        self.env_vars = {
            prefix + "__".join(new_key(tuple(name.removeprefix(prefix).split("__")))): value
            for name, value in self.env_vars.items()
            if name.startswith(prefix)
        }

    def __call__(self) -> dict[str, Any]:
        """What is given, by the names of now within groups too."""
        return by_new_names(super().__call__(), lambda *_: None)


# What a job is checked by.
ABOUT_JOBS = ("default_model", "models", "lora_folders", "embedding_folders", "allow_paths", "limits", "defaults")


class Settings(BaseSettings):
    """All settings; configs/sdbatch.yaml explains each."""

    model_config = SettingsConfigDict(env_prefix="SDBATCH_", env_nested_delimiter="__", extra="forbid", frozen=True)

    engine: Literal["local", "ray", "fake", "fake-process", "fake-ray"] = "local"
    devices: str = Field(
        "auto",
        pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$",
        description="auto, cpu, cuda, cuda:1 and so on, or a list of these such as [cuda:0, cuda:1]",
    )
    ray: Cluster = Cluster()
    default_model: DefaultModel = DefaultModel()
    models: dict[str, NamedModel] = {}
    lora_folders: tuple[Path, ...] = ()
    embedding_folders: tuple[Path, ...] = ()
    converted_bytes: int = Field(20_000_000_000, ge=0)
    model_cache_bytes: int = Field(0, ge=0)
    safety_checker: str = Field("auto", min_length=1, description="auto, off, or the folder of a safety checker")
    watermark: str = Field("", max_length=64)
    preview_steps: int = Field(0, ge=0, le=1000)
    batching: Literal["job", "shared", "fixed"] = "job"
    batch_rows: int = Field(32, ge=1, le=1024)
    compile: Literal["off", "auto", "max"] = "off"
    channels_last: Literal["off", "on", "auto"] = "off"
    attention: Literal["default", "auto", "flash", "efficient", "cudnn", "math"] = "default"
    cpu_threads: str = Field("default", pattern=r"^(default|auto|[1-9]\d{0,2})$", description=THREADS)
    cpu_autocast: Literal["float32", "bfloat16"] = "float32"
    settle_seconds: float = Field(2.0, ge=0, le=3600)
    rescan_seconds: float = Field(5.0, ge=0.1, le=3600)
    use_inotify: bool = True
    repeats: Literal["draw", "skip"] = "draw"
    ignore_folders: tuple[str, ...] = ()
    input_wait_seconds: float = Field(10.0, ge=0, le=86400)
    order: Literal["free", "strict"] = "free"
    max_attempts: int = Field(3, ge=1, le=100)
    hang_seconds: float = Field(600.0, ge=1, le=86400)
    max_consecutive_crashes: int = Field(5, ge=1, le=1000)
    allow_paths: tuple[Path, ...] = ()
    active_hours: str = Field(
        "",
        pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$",
        description='two times of day that differ, such as "22:00-07:00", or empty for always',
    )
    min_free_bytes: int = Field(1_000_000_000, ge=0)
    hooks: HookCommands = HookCommands()
    retention: Retention = Retention()
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    web: Web = Web()

    @field_validator("devices", mode="before")
    @classmethod
    def _list_devices(cls, devices: Any) -> Any:
        """With commas, as a variable has it."""
        listed = ",".join(map(str, devices)) if isinstance(devices, list | tuple) else devices
        return listed.replace(" ", "") if isinstance(listed, str) else listed

    @field_validator("compile", "channels_last", mode="before")
    @classmethod
    def _word(cls, switch: Any) -> Any:
        """For YAML `off` and `on` are no words."""
        return {False: "off", True: "on"}.get(switch, switch) if isinstance(switch, bool) else switch

    @field_validator("cpu_threads", mode="before")
    @classmethod
    def _number(cls, threads: Any) -> Any:
        return str(threads) if isinstance(threads, int) and not isinstance(threads, bool) else threads

    @field_validator("devices")
    @classmethod
    def _leave_gpus_to_ray(cls, devices: str, others: ValidationInfo) -> str:
        if (
            others.data.get("engine") in {"ray", "fake-ray"}
            and ("," in devices or ":" in devices)
            and "cuda" in devices
        ):
            raise ValueError(Message("with `engine: ray` it is auto, cuda, cpu or a list of cpu: Ray chooses the GPUs"))
        return devices

    @field_validator("active_hours")
    @classmethod
    def _last_for_a_while(cls, hours: str) -> str:
        start, _, end = hours.partition("-")
        if hours and start == end:
            raise ValueError(Message("the hours must not end when they begin"))
        return hours

    def bytes_kept_free(self, total: int) -> int:
        """How many bytes of a disk of this size stay free."""
        return min(self.min_free_bytes, total // 100)

    def apply_to(self, place: root.Root) -> root.Root:
        """The root with the settings that concern its jobs."""
        return replace(
            place,
            allowed=tuple(map(as_stored, self.allow_paths)),
            named=tuple(self.models.items()),
            defaults=tuple(self.defaults.model_dump().items()),
            lora_folders=tuple(as_stored(place.path / folder) for folder in self.lora_folders),
            embedding_folders=tuple(as_stored(place.path / folder) for folder in self.embedding_folders),
        )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrides the file."""
        return Environment(settings_cls), init_settings
