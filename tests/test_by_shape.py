"""Networks that get compiled while they work. What the compiler itself makes: test_compiling.py."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import draw_all, pixels_of, reference_model, small_txt2img
from torch import Tensor, nn

from sdbatch.renderer.networks.calls import run
from sdbatch.renderer.tuning import by_shape
from sdbatch.renderer.tuning.by_shape import ENOUGH, ByShape
from sdbatch.renderer.tuning.recipe import key_of, recipe_of
from sdbatch.renderer.tuning.workshop import Made, Workshop

Deliver = Callable[[Made], None]


class Plain(nn.Module):
    """A decoder of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 1}
        self.post_quant_conv = nn.Linear(1, 1, bias=False)
        self.calls = 0

    def decode(self, latents: Tensor, **_: bool) -> tuple[Tensor]:
        self.calls += 1
        return (self.post_quant_conv(latents),)


class Orders(Workshop):
    """Keeps what is ordered."""

    def __init__(self) -> None:
        self.orders: list[tuple[Mapping[str, Any], Deliver]] = []
        self.kept: list[str] = []

    def has(self, recipe: Mapping[str, Any]) -> bool:
        return key_of(recipe) in self.kept

    def order(self, recipe: Mapping[str, Any], deliver: Deliver) -> None:
        self.orders.append((recipe, deliver))


def made(change: Callable[[Tensor], Tensor] = lambda y: y) -> Made:
    """As compiled from it."""
    return Made(lambda weight, latents: [change(latents @ weight.T)], ["post_quant_conv.weight"])


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The seconds that the compiled one takes, and the network."""

    def take(ours: float = 1, its: float = 2) -> None:
        times = iter([ours] * by_shape.TRIALS + [its] * by_shape.TRIALS)
        monkeypatch.setattr(by_shape, "_seconds", lambda _: next(times))

    take()
    return take


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def ask(orders: Orders, told: list[str]) -> Callable[[Plain, int], Tensor]:
    networks = ByShape(orders, "auto", told.append)
    return lambda network, rows: networks("decoder", network, torch.ones(rows, 1))


@torch.inference_mode()
def test_a_shape_that_is_often_needed_is_compiled_and_then_the_network_is_not_asked(
    ask: Callable[[Plain, int], Tensor], orders: Orders, told: list[str], timed: object
) -> None:
    network = Plain()
    for _ in range(ENOUGH - 1):
        ask(network, 2)
    assert not orders.orders
    ask(network, 2)
    ((recipe, deliver),) = orders.orders
    assert recipe["inputs"] == [([2, 1], [1, 1], "float32")]
    expected = ask(network, 2)
    deliver(made())
    ask(network, 2)
    assert "1000.00 ms compiled, 2000.00 ms not" in told[0]
    calls = network.calls
    assert torch.equal(ask(network, 2), expected)
    assert network.calls == calls
    ask(network, 3)
    assert network.calls == calls + 1, "another shape is the network's own"
    network.post_quant_conv.weight = nn.Parameter(2 * network.post_quant_conv.weight, requires_grad=False)
    assert torch.equal(ask(network, 2), 2 * expected), "as LoRAs do it"


@torch.inference_mode()
def test_what_an_earlier_start_compiled_is_used_at_once(ask: Callable[[Plain, int], Tensor], orders: Orders) -> None:
    network = Plain()
    orders.kept.append(key_of(recipe_of("decoder", network, (torch.ones(2, 1),), "auto")))
    ask(network, 2)
    assert len(orders.orders) == 1


@torch.inference_mode()
@pytest.mark.parametrize(
    ("change", "times", "why"),
    [
        (lambda y: y + 0.1 * y, (1, 2), "its numbers are off by 1.0e-01"),
        (lambda y: y * torch.nan, (1, 2), "its numbers are off by nan"),
        (lambda y: y, (2, 2), "it does not pay"),
        (lambda y: y.no_such_method, (1, 2), "no_such_method"),
    ],
)
def test_what_is_wrong_or_slow_is_not_used_and_told(
    change: Callable[[Tensor], Tensor],
    times: tuple[float, float],
    why: str,
    ask: Callable[[Plain, int], Tensor],
    orders: Orders,
    told: list[str],
    timed: Callable[..., None],
) -> None:
    def refused(y: Tensor) -> Tensor:
        try:
            return change(y)
        except AttributeError as error:
            raise RuntimeError(str(error)) from error

    timed(*times)
    network = Plain()
    expected = torch.stack([ask(network, 2) for _ in range(ENOUGH)])[0]
    orders.orders[0][1](made(refused))
    assert torch.equal(ask(network, 2), expected)
    assert why in told[0]
    calls = network.calls
    assert torch.equal(ask(network, 2), expected)
    assert network.calls == calls + 1
    assert len(orders.orders) == 1, "it is not compiled again"


@torch.inference_mode()
def test_memory_that_runs_out_in_it_is_the_jobs_own(
    ask: Callable[[Plain, int], Tensor], orders: Orders, timed: object
) -> None:
    network, state = Plain(), {"is_full": False}

    def full(y: Tensor) -> Tensor:
        if state["is_full"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return y

    for _ in range(ENOUGH):
        ask(network, 2)
    orders.orders[0][1](made(full))
    ask(network, 2)
    state["is_full"] = True
    with pytest.raises(torch.OutOfMemoryError):
        ask(network, 2)


def test_a_job_has_the_same_images_whoever_runs_the_networks(orders: Orders) -> None:
    """All goes through: UNet and decoder, and bit for bit the same while nothing is compiled."""
    networks = ByShape(orders, "auto", print)
    plain, ours = (pixels_of(draw_all(small_txt2img(ddim_steps=12), model=replace(reference_model(), run=how)))
                   for how in (run, networks))  # fmt: skip
    assert all((plain[number] == ours[number]).all() for number in plain)
    assert [recipe["kind"] for recipe, _ in orders.orders] == ["unet"]


# Where there is no compiler.


def test_without_a_compiler_that_is_told_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    told: list[str] = []
    shop = Workshop(tmp_path, told.append)
    recipe = recipe_of("decoder", Plain(), (torch.ones(2, 1),), "auto")
    shop._make(recipe, shop._place(recipe))
    assert told == ["nothing is compiled: there is no C++ compiler (g++) on this machine"]
    assert not shop.has(recipe)
