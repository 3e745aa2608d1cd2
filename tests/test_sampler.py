from collections.abc import Iterator
from dataclasses import replace
from math import isfinite, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference_model import draw_all, init_image, no_report, pixels_of, reference_model, small_img2img, small_txt2img
from tests_support import REFERENCE, every
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.imaging.pictures import Pixels
from sdbatch.job.parameters import AnyJob, Batch, Img2Img
from sdbatch.renderer.draw import draw
from sdbatch.renderer.samplers import SAMPLERS
from sdbatch.renderer.sampling.guidance import Led, Part, Rows, guided
from sdbatch.renderer.sampling.sampler import Course, Sampling, Wish, run
from sdbatch.renderer.sampling.schedule import advance, alphas_cumprod, make_schedule

ALPHAS = alphas_cumprod(0.00085, 0.012, 1000)

# Steps of 1000 for which the scripts ask for timestep 1000, which does not exist.
OFF_THE_END = {3, 9, 27, 36, 37, *range(101, 112), *range(251, 334), *range(501, 1001)}


@pytest.fixture(scope="module")
def init() -> npt.NDArray[np.float32]:
    return init_image(REFERENCE / "init-128x128.png")[:, :64, :64].copy()  # a quarter: four times as fast


# The schedule.


def test_alpha_bar_is_the_product_of_the_float64_betas() -> None:
    alpha_bar, expected = 1.0, []
    for i in range(1000):
        alpha_bar *= 1 - (sqrt(0.00085) + i / 999 * (sqrt(0.012) - sqrt(0.00085))) ** 2
        expected.append(alpha_bar)
    np.testing.assert_allclose(ALPHAS, expected, rtol=1e-12)


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (7, 8), (20, 20), (30, 31), (50, 50), (1000, 1000)])
def test_steps_that_do_not_divide_the_timesteps_make_more_evaluations(steps: int, evaluations: int) -> None:
    assert len(make_schedule(ALPHAS, steps, 0.0)) == evaluations


def test_fifty_steps_stand_at_every_twentieth_timestep_plus_one() -> None:
    assert [step.timestep for step in make_schedule(ALPHAS, 50, 0.0)] == list(range(1, 1000, 20))


def test_every_schedule_is_that_of_the_scripts_and_stays_inside_the_timesteps() -> None:
    for steps in range(1, 1001):
        timesteps = [step.timestep for step in make_schedule(ALPHAS, steps, 1.0)]
        scripts = [t + 1 for t in range(0, 1000, 1000 // steps)]
        assert (scripts[-1] == 1000) == (steps in OFF_THE_END)
        assert timesteps == ([*scripts[:-1], 999] if steps in OFF_THE_END else scripts)


def test_each_step_leads_to_the_one_before_and_the_first_to_the_first_alpha() -> None:
    schedule = make_schedule(ALPHAS, 30, 0.0)
    assert schedule[0].alpha_prev == ALPHAS[0]
    assert [step.alpha_prev for step in schedule[1:]] == [step.alpha for step in schedule[:-1]]
    assert [step.alpha for step in schedule] == [ALPHAS[step.timestep] for step in schedule]


@pytest.mark.parametrize("steps", [1, 3, 30, 37, 50, 333, 999, 1000])
def test_sigma_is_nothing_at_eta_0_and_follows_ddpm_at_eta_1(steps: int) -> None:
    assert {step.sigma for step in make_schedule(ALPHAS, steps, 0.0)} == {0.0}
    for step in make_schedule(ALPHAS, steps, 1.0):
        a, a_prev = step.alpha, step.alpha_prev
        assert isfinite(step.sigma)
        assert step.sigma == pytest.approx(sqrt((1 - a_prev) / (1 - a)) * sqrt(1 - a / a_prev))
        assert 1 - a_prev - step.sigma**2 >= 0


def test_half_eta_is_half_sigma() -> None:
    halves, wholes = (make_schedule(ALPHAS, 20, eta) for eta in (0.5, 1.0))
    assert [2 * step.sigma for step in halves] == [step.sigma for step in wholes]
    assert all(step.sigma > 0 for step in wholes)


# What a sampler calls, with what.


def sampled(course: Course, prediction: float = 0.0) -> tuple[list[float], int]:
    """The timesteps that a sampler asks about, and how often it draws noise."""
    asked: list[float] = []
    drawn = 0

    def noise(sigma: float = 0, sigma_next: float = 0) -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(1)

    def predict(question: tuple[Tensor, float]) -> Tensor:
        asked.append(question[1])
        return torch.full_like(question[0], prediction)

    run(course.sample(torch.ones(1), noise), predict)
    return asked, drawn


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_ddim_evaluates_and_draws_once_a_step_even_where_sigma_is_nothing(steps: int, eta: float) -> None:
    schedule = make_schedule(ALPHAS, steps, eta)
    asked, drawn = sampled(SAMPLERS["ddim"](ALPHAS, Wish(steps, eta)))
    assert asked == [step.timestep for step in reversed(schedule)]
    assert drawn == len(schedule)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
def test_plms_evaluates_and_draws_once_more_in_its_first_step(steps: int) -> None:
    timesteps = [step.timestep for step in reversed(make_schedule(ALPHAS, steps, 0.0))]
    asked, drawn = sampled(SAMPLERS["plms"](ALPHAS, Wish(steps)))
    assert asked == [timesteps[0], timesteps[min(1, len(timesteps) - 1)], *timesteps[1:]]
    assert drawn == len(timesteps) + 1


@pytest.mark.parametrize("wish", [Wish(7, 0.5), Wish(20), Wish(10, strength=0.5), Wish(10, strength=0.0)], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rehearsal_asks_as_often_and_draws_as_much_as_the_sampler(name: str, wish: Wish) -> None:
    """So a job that was stopped goes on with the same noise, and its progress ends at the whole."""
    course = SAMPLERS[name](ALPHAS, wish)
    asked, drawn = sampled(course, prediction=0.5)
    rehearsed: list[tuple[float, ...]] = []
    assert course.rehearse(lambda *sigmas: rehearsed.append(sigmas)) == course.evaluations == len(asked)
    assert len(rehearsed) == drawn


@pytest.mark.parametrize("tokens", [77, 154])
def test_a_negative_prompt_of_another_length_is_asked_apart(tokens: int) -> None:
    x, prompts, unconditional = torch.ones(2, 4, 8, 8), torch.ones(2, 77, 16), torch.full((2, tokens, 16), 0.25)
    asked: list[tuple[int, ...]] = []
    told: list[None] = []

    def sampling() -> Sampling:
        return (yield x, 7.5)

    def network(rows: Rows) -> Tensor:
        assert (rows.timesteps == 7.5).all()
        asked.append((*rows.timesteps.shape, rows.context.shape[1]))
        return rows.x * rows.context.mean(dim=(1, 2))[:, None, None, None]

    led = Led([[Part(prompt)] for prompt in prompts], [*unconditional])
    e = run(guided(sampling(), lambda _: led, 3.0, lambda: told.append(None)), network)
    assert (e == 0.25 + 3 * 0.75).all()
    assert asked == ([(4, 77)] if tokens == 77 else [(2, 154), (2, 77)])
    assert len(told) == 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_step_on_a_prediction_in_half_is_taken_in_float32(half: torch.dtype) -> None:
    """As in the scripts under autocast: their coefficients are tensors of float32."""
    x, prediction, noise = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = prediction.to(half)
    for step in make_schedule(ALPHAS, 50, 0.5):
        halfway = advance(x, prediction, step, noise)
        assert halfway.dtype == torch.float32
        assert torch.equal(halfway, advance(x, prediction.float(), step, noise))


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_0_needs_no_step_and_no_noise(name: str) -> None:
    assert sampled(SAMPLERS[name](ALPHAS, Wish(10, strength=0.0))) == ([], 0)


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"lcm"}))  # which counts on the noise that it puts back
def test_a_perfect_prediction_leads_back_to_the_picture(name: str) -> None:
    x0, e = torch.full((1, 4, 8, 8), 0.3), torch.full((1, 4, 8, 8), -1.2)
    course = SAMPLERS[name](ALPHAS, Wish(25, strength=1.0))
    x = run(course.sample(course.start.mix(e, x0), lambda *_: torch.zeros(1)), lambda _: e)
    # The last step of the scripts leads to alphas_cumprod[0], where a little of the noise is left.
    last = ALPHAS[0] if name in ("ddim", "plms") else 1.0
    torch.testing.assert_close(x, sqrt(last) * x0 + sqrt(1 - last) * e, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("job", "evaluations"),
    [
        (small_txt2img(n_iter=1), 4),
        (small_txt2img(n_iter=1, ddim_steps=7), 8),
        (small_txt2img(n_iter=1, plms=True), 5),
        (small_img2img(n_iter=1, strength=0.75), 3),
        (small_img2img(n_iter=1, strength=0.0), 0),
    ],
)
def test_progress_is_told_after_each_evaluation_and_ends_complete(
    job: AnyJob, evaluations: int, init: npt.NDArray[np.float32]
) -> None:
    told: list[tuple[int, int]] = []

    def on_step(batch: Batch, step: int, steps: int) -> None:
        assert batch.first == 0
        told.append((step, steps))

    list(draw(reference_model(), job, None, init if isinstance(job, Img2Img) else None, 0, on_step))
    assert told == [(i, evaluations) for i in range(1, evaluations + 1)]


# Whole jobs.


LINES = ["a blue car", "a truck", "a spider-man on a truck", "a red cube", "a house"]

RESUMED: dict[str, tuple[AnyJob, list[str] | None]] = {
    "plain": (small_txt2img(ddim_steps=2), None),
    "three iterations of one": (small_txt2img(n_samples=1, n_iter=3, ddim_steps=2), None),
    "steps not dividing 1000": (small_txt2img(ddim_steps=3), None),
    "fixed_code": (small_txt2img(fixed_code=True, ddim_eta=0.4, ddim_steps=2), None),
    "eta": (small_txt2img(ddim_eta=0.8, n_iter=3, ddim_steps=2), None),
    "plms": (small_txt2img(plms=True, ddim_steps=2), None),
    "short chunk": (small_txt2img(from_file="p.txt", ddim_steps=2), LINES),
    "short chunk, fixed_code, eta": (
        small_txt2img(from_file="p.txt", fixed_code=True, ddim_eta=0.5, ddim_steps=2),
        LINES,
    ),
    "short chunk, plms": (small_txt2img(from_file="p.txt", plms=True, n_samples=3, ddim_steps=2), LINES),
    "img2img": (small_img2img(ddim_steps=2), None),
    "img2img with eta": (small_img2img(ddim_eta=0.5, strength=0.6), None),
    "img2img without a step": (small_img2img(strength=0.1, n_iter=3), None),
    "img2img, short chunk": (small_img2img(from_file="p.txt", ddim_eta=0.5, ddim_steps=2), LINES[:3]),
}


@pytest.mark.parametrize("name", every(2, RESUMED))
def test_a_resumed_job_draws_the_missing_pictures_bit_for_bit(name: str, init: npt.NDArray[np.float32]) -> None:
    job, lines = RESUMED[name]
    image = init if "img2img" in name else None
    whole = pixels_of(draw_all(job, lines, image))
    assert sorted(whole) == list(range(job.n_iter * (len(lines) if lines else job.n_samples)))
    for start_at in sorted({1, 2, len(whole) // 2, len(whole) - 1}):  # in a batch, behind one, behind an iteration
        rest = pixels_of(draw_all(job, lines, image, start_at))
        assert start_at - job.n_samples < min(rest) <= start_at, "batches that are there already are not drawn again"
        assert max(rest) == max(whole)
        for index, picture in rest.items():
            np.testing.assert_array_equal(picture, whole[index])


def test_a_job_of_which_everything_is_there_draws_nothing() -> None:
    assert draw_all(small_txt2img(), start_at=4) == []


def test_pictures_of_a_job_differ_from_each_other() -> None:
    pictures = pixels_of(draw_all(small_txt2img()))
    assert len({picture.tobytes() for picture in pictures.values()}) == 4


def test_fixed_code_starts_every_iteration_from_the_same_noise() -> None:
    pictures = pixels_of(draw_all(small_txt2img(fixed_code=True)))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    np.testing.assert_array_equal(pictures[1], pictures[3])
    assert (pictures[0] != pictures[1]).any()


def equal(one: dict[int, Pixels], other: dict[int, Pixels]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[i], other[i]) for i in one)


def test_a_job_draws_the_same_whatever_was_drawn_before_it(init: npt.NDArray[np.float32]) -> None:
    jobs: list[tuple[AnyJob, npt.NDArray[np.float32] | None]] = [
        (small_txt2img(ddim_eta=0.5), None),
        (small_img2img(ddim_eta=0.5), init),
        (small_txt2img(plms=True), None),
    ]
    alone = [pixels_of(draw_all(job, None, image)) for job, image in jobs]
    torch.manual_seed(999)
    torch.randn(17)
    for i in (2, 0, 1, 1, 0, 2):
        job, image = jobs[i]
        assert equal(pixels_of(draw_all(job, None, image)), alone[i])
        torch.randn(3)


def test_a_job_does_not_touch_the_global_random_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.randn(4)
    torch.manual_seed(5)
    draw_all(small_txt2img(ddim_eta=0.5))
    assert torch.equal(torch.randn(4), expected)


def test_a_job_dropped_halfway_leaves_nothing_for_the_next() -> None:
    alone = pixels_of(draw_all(small_txt2img()))
    dropped: Iterator[Any] = draw(reference_model(), small_txt2img(seed=8), None, None, 0, no_report)
    next(dropped)
    assert equal(pixels_of(draw_all(small_txt2img())), alone)


def test_the_seed_decides_the_picture() -> None:
    one, other = (pixels_of(draw_all(small_txt2img(seed=seed))) for seed in (7, 8))
    assert all((one[i] != other[i]).any() for i in one)


def test_the_negative_prompt_changes_the_picture() -> None:
    plain, steered = (
        pixels_of(draw_all(small_txt2img(negative_prompt=text))) for text in ("", "blurry, grey, a wooden house")
    )
    assert all((plain[i] != steered[i]).any() for i in plain)


def test_scale_1_ignores_the_negative_prompt_but_not_the_prompt() -> None:
    plain = draw_all(small_txt2img(scale=1.0))
    steered = draw_all(small_txt2img(scale=1.0, negative_prompt="blurry, grey"))
    other = draw_all(small_txt2img(scale=1.0, prompt="a wooden house"))
    assert equal(pixels_of(plain), pixels_of(steered))
    assert not torch.equal(plain[0].latents, other[0].latents)


class Watched:
    """The UNet, and how many pictures it was given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        self.batches.append(len(x))
        return reference_model().unet(x, *arguments, **options)


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 2), (1.5, 4), (0.0, 4)])
def test_scale_1_leaves_the_unconditional_half_out(scale: float, batch: int) -> None:
    watched = Watched()
    draw_all(small_txt2img(scale=scale, n_iter=1), model=replace(reference_model(), unet=watched))
    assert watched.batches == [batch] * 4


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 9, 10])
@pytest.mark.parametrize("strength", [0.0, 0.001, 0.3, 0.999, 1.0])
def test_every_strength_draws(steps: int, strength: float, init: npt.NDArray[np.float32]) -> None:
    (drawn,) = draw_all(small_img2img(n_iter=1, n_samples=1, ddim_steps=steps, strength=strength), None, init)
    assert torch.isfinite(drawn.latents).all()
    assert drawn.pixels.shape == (1, 64, 64, 3)
    assert drawn.pixels.std() > 0


def test_the_lower_the_strength_the_nearer_the_init_image(init: npt.NDArray[np.float32]) -> None:
    model = reference_model()
    with torch.inference_mode():
        start = model.encode(torch.from_numpy(init)[None], torch.zeros(1, 4, 8, 8))
    far = [
        float(
            (draw_all(small_img2img(n_iter=1, ddim_steps=10, strength=s), None, init)[0].latents - start).abs().mean()
        )
        for s in (0.0, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("steps", [3, 9, 36])
@pytest.mark.parametrize("plms", [False, True])
def test_steps_on_which_the_scripts_crash_are_drawn(steps: int, plms: bool) -> None:
    (drawn,) = draw_all(small_txt2img(ddim_steps=steps, plms=plms, n_iter=1, n_samples=1))
    assert torch.isfinite(drawn.latents).all()


# What a model refuses.


def test_latent_channels_that_the_model_has_not_are_refused_by_name() -> None:
    with pytest.raises(JobError, match=r"C: 3 .* 4"):
        draw_all(small_txt2img(C=3))


@pytest.mark.parametrize(("f", "side"), [(4, 128), (8, 64), (16, 32)])
def test_another_downsampling_factor_draws_another_size_as_in_the_scripts(f: int, side: int) -> None:
    job = small_txt2img(f=f, ddim_steps=2, n_iter=1, n_samples=1)
    (drawn,) = draw_all(job)
    assert drawn.pixels.shape == (1, side, side, 3)
    assert job.picture_size == (side, side)


def test_more_steps_than_the_model_was_trained_on_are_refused() -> None:
    with pytest.raises(JobError, match="ddim_steps: the limit is 3"):
        draw_all(small_txt2img(), model=replace(reference_model(), alphas=ALPHAS[:3]))


class Decoder:
    """An autoencoder that decodes everything to one number."""

    use_tiling = False

    def __init__(self, number: float) -> None:
        self.number = number

    def decode(self, latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:  # noqa: ARG002 - as the library calls it
        batch, _, height, width = latents.shape
        return (torch.full((batch, 3, 8 * height, 8 * width), self.number),)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error_and_no_black_picture(number: float) -> None:
    with pytest.raises(JobError, match="not finite"):
        draw_all(small_txt2img(), model=replace(reference_model(), vae=Decoder(number)))


def test_a_truly_black_picture_is_accepted() -> None:
    drawn = draw_all(small_txt2img(), model=replace(reference_model(), vae=Decoder(-1.0)))
    assert len(drawn) == 2
    assert all((one.pixels == 0).all() for one in drawn)
