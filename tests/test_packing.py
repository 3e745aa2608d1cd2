"""Rows of many samplings in one pass of the network."""

import random
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.renderer.company import sizes_of
from sdbatch.renderer.sampling.guidance import Rows
from sdbatch.renderer.sampling.packing import Packing

Asking = Generator[Rows, Tensor, Tensor]


def doubling(rows: int, number: float, steps: int, tokens: int = 77) -> Asking:
    """Asks `steps` times what a network makes of its number."""
    x = torch.full((rows, 1, 1, 1), number)
    for step in range(steps):
        x = yield Rows(x, torch.full((rows,), float(step)), torch.zeros(rows, tokens, 1))
    return x


class Network:
    """Gives twice of what it is asked, and keeps how many rows it was asked at once."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __call__(self, rows: Rows) -> Tensor:
        assert len(rows.x) == len(rows.timesteps) == len(rows.context)
        self.passes.append(len(rows.x))
        return 2 * rows.x


def run_all(packing: Packing, ended: dict[object, Any], count: int, network: Network) -> None:
    while len(ended) < count:
        packing.step(network)


@pytest.mark.parametrize("batching", ["shared", "fixed"])
@pytest.mark.parametrize("seed", range(5))
def test_each_gets_its_own_answers_in_whatever_company(batching: str, seed: int) -> None:
    choice = random.Random(seed)
    packing, network = Packing(sizes_of(batching, 8)), Network()
    ended: dict[object, Any] = {}
    wanted = {i: (choice.randint(1, 11), choice.uniform(-3, 3), choice.randint(0, 5)) for i in range(9)}
    for i, (rows, number, steps) in wanted.items():
        packing.add(doubling(rows, number, steps, choice.choice([77, 154])), partial(ended.__setitem__, i))
        for _ in range(choice.randint(0, 4)):
            packing.step(network)
    run_all(packing, ended, len(wanted), network)
    for i, (rows, number, steps) in wanted.items():
        assert torch.equal(ended[i], torch.full((rows, 1, 1, 1), number) * 2**steps)
    assert set(network.passes) <= ({8} if batching == "fixed" else {1, 2, 4, 8})


def test_who_asks_is_answered_in_order_and_what_is_asked_may_be_split() -> None:
    packing, network = Packing((4,)), Network()
    ended: dict[object, Any] = {}
    for name in ("first", "second", "third"):
        packing.add(doubling(3, 1, 1), partial(ended.__setitem__, name))
    for expected in (["first"], ["first", "second"], ["first", "second", "third"]):
        packing.step(network)
        assert [*ended] == expected


def test_alone_what_one_asks_goes_through_as_it_is() -> None:
    packing, network = Packing(), Network()
    ended: dict[object, Any] = {}
    assert packing.has_room
    packing.add(doubling(5, 1, 2), lambda x: ended.update({"one": x}))
    assert not packing.has_room
    run_all(packing, ended, 1, network)
    assert network.passes == [5, 5]


def test_an_error_in_one_is_its_own() -> None:
    def failing() -> Asking:
        yield Rows(torch.ones(1, 1, 1, 1), torch.zeros(1), torch.zeros(1, 77, 1))
        raise JobError("not finite")

    packing, network = Packing((8,)), Network()
    ended: dict[object, Any] = {}
    packing.add(failing(), lambda x: ended.update({"failing": x}))
    packing.add(doubling(2, 1, 3), lambda x: ended.update({"other": x}))
    run_all(packing, ended, 2, network)
    assert isinstance(ended["failing"], JobError)
    assert (ended["other"] == 8).all()


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 4), (5, 4), (6, 8), (11, 8), (25, 32), (40, 32)])
def test_a_pass_wastes_no_more_than_a_quarter(rows: int, size: int) -> None:
    packing, network = Packing((1, 2, 4, 8, 16, 32)), Network()
    packing.add(doubling(rows, 1, 1), lambda _: None)
    packing.step(network)
    assert network.passes == [size]
