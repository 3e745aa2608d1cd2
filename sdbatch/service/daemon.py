"""The service as a process: one per root, with its loop, events and signals."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType

from sdbatch.config import sources
from sdbatch.config.settings import DefaultModel, Settings
from sdbatch.engine.local import FAKE_RENDERER, RENDERER, LocalEngine, every_device
from sdbatch.engine.protocol import Engine, RendererConfig
from sdbatch.errors import ConfigError, JobError
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.lock import RootLock
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import as_stored
from sdbatch.telemetry import systemd
from sdbatch.telemetry.clock import Clock, system_clock

NAP_SECONDS = 0.5  # the longest a signal has to wait
TROUBLE_NAP_SECONDS = 5.0  # between attempts to go on when the disk fails
TROUBLES_IN_A_DRAIN = 3


def run(root: Root, settings: Settings, *, drain: bool) -> int:
    """Serve until told to stop, or until nothing is left; returns the exit code.

    0: stopped, or drained and all done. 1: drained, and a job failed, or stopped before the end. 69: drained as far as
    it went, but nothing can be drawn for now. 74: drained, and the disk would not have it, or jobs may lie unseen in an
    inbox that can't be read.

    Raises:
        RootBusy: another service works on this root.
        ConfigError: the root can't be written.
    """
    prepare(root)
    lock = RootLock(root)
    lock.hold()
    service = Service(root, settings, make_engine(root, settings, preload=not drain), lock)
    _heed_signals(service)
    service.seats.look_after(system_clock().mono, settings.hang_seconds)  # imports take seconds, as settling does
    service.index_writer.start()
    service.outlook.start()
    service.log.info("serving", root=str(root.path), pid=os.getpid(), drain=drain)
    sources.warn_of_a_short_watchdog(settings, service.log)
    if settings.use_inotify:
        service.inbox.watcher.start()
    for text in sources.unknown_variables():
        service.log.warning("a variable in the environment has another name", why=text)
    for text in sources.load(root.configuration).renamed:
        service.log.warning("a setting has another name", why=text)
    try:
        with _bar(service):
            return _loop(service, system_clock, drain=drain)
    finally:
        systemd.notify(STOPPING=1)
        service.inbox.watcher.stop()
        if lock.is_held:  # otherwise another service has these jobs
            service.drop_all()
        service.seats.stop()
        service.engine.close()
        service.hooks.finish()
        service.index_writer.finish()
        if lock.is_held:
            service.tell_end()
        lock.release()


def prepare(root: Root) -> None:
    """Create the root's folders.

    Raises:
        ConfigError: they can't be created.
        OSError: the disk failed or is full.
    """
    try:
        for folder in root.folders():
            if not folder.is_symlink():  # a broken link may be a disk that is mounted later
                files.make_dir(folder)
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        template = "{root}: can't create the folders of a root here: {problem}"
        raise ConfigError(template, root.path, error.strerror) from error


def make_engine(root: Root, settings: Settings, *, preload: bool = True) -> Engine:
    """The engine that the configuration names."""
    if settings.engine == "fake":
        from sdbatch.engine.fake import FakeEngine  # noqa: PLC0415 - not part of a real service

        return FakeEngine()
    chosen = settings.default_model if preload else DefaultModel(ckpt="")
    checker = settings.safety_checker
    devices = every_device() if settings.devices == "auto" else settings.devices.split(",")
    config = RendererConfig(
        device=devices[0],
        checksums=root.state / "checksums.json",
        converted_bytes=settings.converted_bytes,
        model_cache_bytes=settings.model_cache_bytes,
        safety_checker=checker if checker in {"auto", "off"} else str(as_stored(root.path / checker)),
        watermark=settings.watermark,
        batching=settings.batching,
        batch_rows=settings.batch_rows,
        compile=settings.compile,
        channels_last=settings.channels_last,
        attention=settings.attention,
        cpu_threads=settings.cpu_threads,
        cpu_autocast=settings.cpu_autocast,
    )
    program = FAKE_RENDERER if settings.engine.startswith("fake-") else RENDERER
    if settings.engine in {"ray", "fake-ray"}:
        from sdbatch.engine.cluster.engine import RayEngine  # noqa: PLC0415 - most services have one machine
        from sdbatch.operations import cluster  # noqa: PLC0415

        return RayEngine(cluster.config_of(root, settings, config, program), lambda: _to_preload(root, chosen))
    return LocalEngine(config, devices, lambda: _to_preload(root, chosen), program)


def _to_preload(root: Root, chosen: DefaultModel) -> Sequence[Path]:
    """The default model's checkpoint, config and autoencoder, if they exist when a renderer starts."""
    try:
        return [path for path in root.find_weights(chosen.ckpt, chosen.config) if path] if chosen.ckpt else ()
    except JobError:
        return ()  # the jobs that name them are told


def _loop(service: Service, clock: Clock, *, drain: bool) -> int:
    recovered, troubles, told = False, 0, ""
    while not service.stop_requested:
        if not service.runs:
            service.manager.feed(clock().mono)
        try:
            if not recovered:
                for _ in range(service.spool.recover()):
                    service.ending.failed += 1
                    service.totals.count_job("failed", "unrecoverable")
                recovered = True
            worked = service.turn(clock)
            if drain and not worked and (code := _end_of_drain(service)) is not None:
                return code
            troubles = 0
        except OSError as error:
            troubles += 1
            if str(error) != told:  # log it once: a share can be away all night
                service.log.error("the disk fails; jobs are kept", error=files.in_words(error))  # noqa: TRY400 - no slip of ours
            told = str(error)
            service.tell_trouble(error, clock())
            if drain and troubles == TROUBLES_IN_A_DRAIN:
                return os.EX_IOERR
            _nap(service, TROUBLE_NAP_SECONDS)
            continue
        told = ""
        if not worked and not service.inbox.is_scanning:
            service.inbox.bell.wait(NAP_SECONDS)
    return 1 if drain else 0


def _end_of_drain(service: Service) -> int | None:
    """The exit code of --drain, when nothing is left or nothing can be generated."""
    is_away = service.inbox.is_away and service.readiness.is_ready  # a claimed job may wait for a file there
    if service.has_drawn_all() or is_away:
        for folder, error in sorted(service.inbox.unreadable.items()):  # there may be jobs that can't be seen
            service.log.error("all else is drawn, but this folder can't be read", folder=folder, error=error.strerror)
        if service.inbox.unreadable:
            return os.EX_IOERR
        return 1 if service.failed or service.scheduler.unmovable.why else 0
    if not service.problem or service.inbox.unsettled:
        return None
    has_disk_trouble = any(map(files.is_disk_trouble, service.spool.unreadable.values()))
    return os.EX_IOERR if has_disk_trouble else os.EX_UNAVAILABLE


def _bar(service: Service) -> AbstractContextManager[object]:
    """A progress bar, if a person sits at a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from sdbatch.service.screen import Bar  # noqa: PLC0415 - a service under systemd has no use for rich

    bar = Bar()
    service.status.watcher = bar.show
    return bar


def _nap(service: Service, seconds: float) -> None:
    """Wait, but at most NAP_SECONDS after a stop was requested."""
    for _ in range(round(seconds / NAP_SECONDS)):
        if not service.stop_requested:
            time.sleep(NAP_SECONDS)


def _heed_signals(service: Service) -> None:
    """Signals only set a flag: anything more could wait for a lock that the main thread holds."""
    had_terminal = os.isatty(2)

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        service.stop_requested = True

    def request_reload(_number: int, _frame: FrameType | None) -> None:
        if had_terminal and not os.isatty(2):  # what SIGHUP once meant: the terminal was closed
            service.stop_requested = True
        else:
            service.reload_requested = True

    signal.signal(signal.SIGHUP, request_reload)
    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
