"""The cluster that the configuration names: what its engine is told of it, and whether its nodes can draw."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from sdbatch.config.settings import Settings
from sdbatch.engine.cluster.messages import ClusterConfig
from sdbatch.engine.finding import Finding, problem
from sdbatch.engine.local import RENDERER
from sdbatch.engine.protocol import RendererConfig
from sdbatch.errors import JobError
from sdbatch.messages import Message, unpack
from sdbatch.storage.root import Root

CHECK = "sdbatch.engine.cluster.check"
CHECK_SECONDS = 300.0  # for all nodes


def config_of(root: Root, settings: Settings, renderer: RendererConfig, program: str = RENDERER) -> ClusterConfig:
    """What the process that speaks with Ray has to know."""
    wanted = settings.ray
    try:
        ckpt = root.find_weights(settings.default_model.ckpt, settings.default_model.config).ckpt
    except JobError:
        ckpt = None
    return ClusterConfig(
        root=root.path,
        renderer=renderer,
        program=program,
        address=wanted.address,
        seats=None if wanted.seats == "all" else wanted.seats,
        resources=wanted.resources,
        nodes=wanted.nodes,
        devices=settings.devices,
        near=wanted.local_models,
        ckpt=ckpt,
    )


def findings(root: Root, settings: Settings) -> Iterator[Finding]:
    """Each node is tried, in a process of its own: what Ray does to a program must not happen to this one."""
    config = config_of(root, settings, RendererConfig(device="auto", checksums=root.state / "checksums.json"))
    reading, writing = os.pipe()
    command = [sys.executable, "-m", CHECK, config.model_dump_json(), str(writing)]
    with os.fdopen(reading, encoding="utf-8") as answers:
        try:
            child = subprocess.Popen(
                ["timeout", f"{CHECK_SECONDS:g}", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                text=True,
            )
        except OSError as error:
            yield problem("cluster", "can't be checked: {problem}", "", error.strerror)
            return
        finally:
            os.close(writing)
        for line in answers:
            told: dict[str, Any] = {name: unpack(text) for name, text in json.loads(line).items()}
            yield Finding(**told)
        _, said = child.communicate()
    if child.returncode:
        last = said.strip().rpartition("\n")[2]
        text = Message("the check of the cluster ended early (exit code {code}): {problem}", child.returncode, last)
        yield problem("cluster", text, Message("see `ray status`, and docs/cluster.md"))
