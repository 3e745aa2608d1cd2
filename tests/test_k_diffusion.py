"""The samplers and schedules of the web UIs, held against k-diffusion's own and against latents drawn by it."""

import json
from collections.abc import Generator
from dataclasses import replace
from math import cos

import numpy as np
import pytest
import torch
from reference_model import WEBUI, draw_all, small_img2img, small_txt2img, webui_case, webui_model
from torch import Tensor

from sdbatch.job.parameters import Txt2Img
from sdbatch.renderer.k_diffusion.course import KDiffusion
from sdbatch.renderer.k_diffusion.schedules import SCHEDULES
from sdbatch.renderer.k_diffusion.sigmas import TrainingSigmas
from sdbatch.renderer.samplers import SAMPLERS
from sdbatch.renderer.sampling.brownian import BrownianPaths
from sdbatch.renderer.sampling.sampler import Wish, run
from sdbatch.renderer.sampling.schedule import alphas_cumprod

ALPHAS = alphas_cumprod(0.00085, 0.012, 1000)
TRAINING = TrainingSigmas(ALPHAS)
K = {name: sampler for name, sampler in SAMPLERS.items() if isinstance(sampler, KDiffusion)}
ENDS = json.loads((WEBUI / "of_k_diffusion.json").read_text())


@pytest.mark.parametrize("name", ENDS)
def test_a_sampler_ends_where_that_of_k_diffusion_ends(name: str) -> None:
    """The numbers are those of k-diffusion 0.1.1.post1 with this denoiser, these levels, this start and noise."""

    def ask(x: Tensor, sigma: Tensor) -> Generator[tuple[Tensor, float], Tensor, Tensor]:
        yield x, 0.0
        return torch.tanh(x / (1 + sigma)) + 0.1 * x / (1 + sigma**2)

    calls = iter(range(1000))

    def noise(sigma: float = 0, sigma_next: float = 0) -> Tensor:
        call = next(calls)
        return torch.tensor([[cos(call + i) for i in range(3)]])

    sigmas = torch.tensor([10.0, 5.0, 2.5, 1.0, 0.4, 0.1, 0.0])
    sampling = K[name].sample(ask, torch.tensor([[-8.0, 1.5, 11.0]]), sigmas, noise, 1.0)
    assert run(sampling, lambda _: torch.zeros(1))[0].tolist() == pytest.approx(ENDS[name], abs=1e-6)


def test_every_sampler_of_k_diffusion_that_a_job_can_name_is_held_against_it() -> None:
    assert {*ENDS, "lcm"} == {*K}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_falls_from_the_noisiest_training_level_to_zero(schedule: str) -> None:
    course = SAMPLERS["euler"](ALPHAS, Wish(10, schedule=schedule))
    asked: list[float] = []

    def answer(at: tuple[Tensor, float]) -> Tensor:
        asked.append(at[1])
        return torch.zeros(1)

    run(
        course.sample(
            torch.zeros(1),
            lambda sigma=0, sigma_next=0: torch.zeros(1),  # noqa: ARG005
        ),
        answer,
    )
    assert course.start.noise == pytest.approx(float(TRAINING.max), rel=2e-3)
    assert asked == sorted(asked, reverse=True)
    assert len(asked) == 10 + (schedule == "kl_optimal")
    assert (asked[-1] > 5) == (schedule in ("sgm_uniform", "simple"))


@pytest.mark.parametrize(
    ("schedule", "levels"),
    [
        ("karras", [14.6146, 4.7965, 1.2741, 0.2480, 0.0292]),
        ("exponential", [14.6146, 3.0890, 0.6529, 0.1380, 0.0292]),
        ("align_your_steps", [14.615, 3.2269, 1.396, 0.5100, 0.029]),
    ],
)
def test_levels_of_five_steps(schedule: str, levels: list[float]) -> None:
    """The first two are k-diffusion's, the last is between the published ones, evenly in log sigma."""
    assert SCHEDULES[schedule](TRAINING, 5).tolist() == pytest.approx(levels, rel=2e-3)


CASES = sorted(case.stem for case in (WEBUI / "cases").glob("*.json"))


@pytest.mark.parametrize("name", CASES)
def test_latents_are_those_of_the_web_uis(name: str) -> None:
    fields, expected = webui_case(name)
    drawn = np.stack([one.latents.numpy() for one in draw_all(Txt2Img.model_validate(fields), model=webui_model())])
    assert np.abs(drawn - expected).max() / np.abs(expected).max() < 1e-4


def normal(seed: int) -> Tensor:
    return torch.randn(2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (5.0, 14.614642, [1.7246119976043701, -3.981525421142578]),
        (0.5, 5.0, [-3.7167513370513916, 0.04882209748029709]),
        (0.4999, 0.5, [-0.01034809835255146, 0.0022611133754253387]),
        (0.03, 14.614642, [-1.745302438735962, -5.202006816864014]),
    ],
)
def test_a_path_is_that_of_torchsde(low: float, high: float, expected: list[float]) -> None:
    """The numbers are those of torchsde 0.2.6: BrownianTree(0.03, zeros(2), 14.614642, entropy=42)."""
    paths = BrownianPaths([41, 42], (0.03, 14.614642), normal)
    way = paths(low, high)[1] * (high - low) ** 0.5
    assert way.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.equal(paths(high, low), -paths(low, high))


def test_a_level_that_rounding_brought_beyond_its_path_is_its_end() -> None:
    paths = BrownianPaths([1], (0.03, 14.614642), normal)
    assert torch.allclose(paths(14.614643, 5.0), paths(14.614642, 5.0))


class Velocity(torch.nn.Module):
    """A UNet that says the same as another by its velocity (Salimans & Ho 2022): sqrt(a) noise - sqrt(1 - a) image."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timesteps: Tensor, **arguments: object) -> tuple[Tensor]:
        noise = self.unet(x, timesteps, **arguments)[0]
        alpha = (1 / (1 + TRAINING.at(timesteps) ** 2))[:, None, None, None]
        image = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        return (alpha.sqrt() * noise - (1 - alpha).sqrt() * image,)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_predicts_velocity_draws_what_one_that_predicts_noise_draws(name: str) -> None:
    job = small_txt2img(sampler=name, n_iter=1)
    model = webui_model()
    says_velocity = replace(model, unet=Velocity(model.unet), prediction="v_prediction")
    noise, velocity = (draw_all(job, model=each)[0].latents for each in (model, says_velocity))
    assert (noise - velocity).abs().max() / noise.abs().max() < 1e-4


@pytest.mark.parametrize("name", K)
def test_img2img_walks_the_last_steps_from_the_init_image(name: str) -> None:
    """As the web UIs: int(min(strength, 0.999) * steps) + 1 of them, the first noise added at their first level."""
    whole, half = (SAMPLERS[name](ALPHAS, Wish(8, strength=strength)) for strength in (None, 0.5))
    assert half.start.signal == 1
    assert half.start.noise < whole.start.noise
    assert half.evaluations in (5, 9)  # 9: two evaluations a step, and one in the last
    assert SAMPLERS[name](ALPHAS, Wish(8, strength=1.0)).evaluations == whole.evaluations


def test_img2img_of_little_strength_stays_near_the_init_image() -> None:
    init = np.zeros((3, 64, 64), dtype=np.float32)
    near, far = (
        draw_all(small_img2img(sampler="dpmpp_2m", strength=strength, ddim_steps=8), init=init)[0].latents
        for strength in (0.1, 0.9)
    )
    clean = draw_all(small_img2img(sampler="ddim", strength=0.0, ddim_steps=8), init=init)[0].latents
    assert (near - clean).std() < (far - clean).std()
