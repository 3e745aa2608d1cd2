"""Which device a renderer takes, where torch has one that is not here."""

from types import SimpleNamespace

import pytest
import torch
from torch.cuda._utils import _get_device_index

from sdbatch.engine.renderer import find_device


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A torch with two GPUs, as far as choosing one goes; the numbers of those that were made the current one."""
    chosen: list[int] = []

    def zeros(_: int, device: str) -> SimpleNamespace:
        return SimpleNamespace(device=torch.device(device if ":" in device else f"{device}:0"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    return chosen


@pytest.mark.parametrize(("asked", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_taken_by_its_number_whether_or_not_the_configuration_says_one(
    asked: str, number: int, made_current: list[int]
) -> None:
    assert find_device(asked) == torch.device("cuda", number)
    assert made_current == [number]


def test_the_cpu_is_made_no_current_gpu(made_current: list[int]) -> None:
    assert find_device("cpu").type == "cpu"
    assert not made_current
