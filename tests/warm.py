"""Our programs without their imports: `python -m sdbatch...` as a fork of the process that runs the tests.

A fork is a process of its own, as the program would be: it can be killed, may change its account, and its renderer is
its child. But it has imported already what takes a program half a second, and a renderer five, of one core. Whatever
asks Python for something that is settled at its start gets a new Python all the same, and so do the tests of files that
have the fixture `cold`; with COLD_TESTS=1 in the environment, all do.
"""

import gc
import importlib
import inspect
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# What Python, and the libraries, read when they are started.
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ")
ColdPopen = subprocess.Popen
PYTHON = sys.executable  # a test may name another
OURS = ("sdbatch", "renderer_of_little_memory")


class WarmPopen(ColdPopen):  # type: ignore[type-arg] # of text or bytes, as it is asked for
    """Starts our programs warm, and any other as ever."""

    def _execute_child(self, *started: Any) -> None:
        cold = super()._execute_child  # type: ignore[misc] # Popen's own, the one place that makes the process
        given = inspect.signature(cold).bind(*started).arguments
        if not _is_ours(given):
            cold(*started)
            return
        _import_what_it_needs(list(given["args"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of threads that the fork has not
            pid = os.fork()
        if not pid:
            _become(given)
        self.pid, self._child_created = pid, True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[end] for end in ends))  # type: ignore[attr-defined]


def _is_ours(given: Mapping[str, Any]) -> bool:
    command = given["args"]
    if not isinstance(command, (list, tuple)) or [*command[:2]] != [PYTHON, "-m"]:
        return False
    is_plain = given["preexec_fn"] is None and given["uid"] is None and given["umask"] == -1 and not given["shell"]
    if not is_plain or command[2].partition(".")[0] not in OURS or "COLD_TESTS" in os.environ:
        return False
    env = os.environ if given["env"] is None else given["env"]
    return not any(env.get(key) != os.environ.get(key) for key in {*env, *os.environ} if key.startswith(AT_START))


def _import_what_it_needs(command: list[str]) -> None:
    """Here, so that it is done once."""
    importlib.import_module("sdbatch.cli.main")
    if command[2] != "sdbatch" or "serve" in command:
        importlib.import_module("sdbatch.service.daemon")
        importlib.import_module("sdbatch.renderer.renderer")


def _become(given: Mapping[str, Any]) -> NoReturn:
    """Go on as the program; nothing of the tests is left but what was imported."""
    code = 1
    try:
        gc.freeze()  # what the tests dropped must not be closed by its old number
        _forget_signals()
        if given["start_new_session"]:
            os.setsid()
        _take_streams(given)
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update(given["env"])
        if given["cwd"] is not None:
            os.chdir(given["cwd"])
        code = _run(list(map(os.fspath, given["args"])))
    except BaseException:  # noqa: BLE001 - as Python does at its end
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined] # waits for the threads that are no daemons
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forget_signals() -> None:
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _take_streams(given: Mapping[str, Any]) -> None:
    """The three streams as they were asked for; no other file stays open, but its number, which old objects close."""
    for number, end in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if given[end] != -1:
            os.dup2(given[end], number)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number != nothing and number not in given["pass_fds"]:
            with suppress(OSError):  # the listing's own is closed by now
                os.fstat(number)
                os.dup2(nothing, number, inheritable=False)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def _run(command: list[str]) -> int:
    """The module as `python -m` runs it; the exit code as Python makes one."""
    logging.root.handlers.clear()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    sys.orig_argv, sys.argv = command, command[2:]
    try:
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)  # noqa: T201 - its last words
        return 1
    return 0
