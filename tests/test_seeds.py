"""Seeds: whose random numbers a job draws, by which seed, and what stays the same when it is drawn again."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from reference_model import draw_all, init_image, pixels_of, small_img2img, small_txt2img
from tests_support import REFERENCE, drain, only

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw as Request
from sdbatch.errors import JobError
from sdbatch.history.history import History
from sdbatch.history.records import PictureRecord
from sdbatch.history.restore import draws_more, follow_up, rerun
from sdbatch.imaging import png_text
from sdbatch.imaging.pictures import Pixels
from sdbatch.job import reader
from sdbatch.job.parameters import AnyJob
from sdbatch.renderer.sampling.noise import Generator, JobNoise, PictureNoise, turned
from sdbatch.renderer.sampling.philox import Philox, philox
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

CPU = torch.device("cpu")
SMALL = "H: 64\nW: 64\n"

# Philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers (kat_vectors) for philox4x32 with 10 rounds
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: list[int], words: list[int]) -> None:
    drawn = philox(np.array(counter, np.uint32)[:, None], np.array(key, np.uint32))
    assert drawn[:, 0].tolist() == words


def test_a_gpus_numbers_are_counted_as_cuda_does() -> None:
    """What `torch.manual_seed(0); torch.randn(4, device="cuda")` gives on any GPU; test_gpu.py asks one."""
    assert Philox(0).randn((4,)).tolist() == pytest.approx([-0.9247, -0.4253, -2.6438, 0.1452], abs=5e-5)
    many = Philox(7).randn((100_000,))
    assert abs(many.mean()) < 0.02
    assert many.std() == pytest.approx(1, abs=0.02)


# Generators


@pytest.mark.parametrize("rng", ["device", "cpu", "nv"])
def test_a_fork_goes_on_with_the_same_numbers(rng: str) -> None:
    generator = Generator(5, CPU, rng)  # type: ignore[arg-type]
    generator.draw((3,))
    fork = generator.fork()
    assert torch.equal(generator.draw((4,)), fork.draw((4,)))
    assert not torch.equal(generator.draw((4,)), Generator(5, CPU, rng).draw((4,)))  # type: ignore[arg-type]


def test_a_job_has_one_generator_and_on_a_gpu_another_for_the_posterior() -> None:
    noise, alone = JobNoise.seeded(3, CPU), Generator(3, CPU, "device")
    drawn = [noise.of_posterior((2,)), noise.of_batch(0, (1, 2))()[0], noise.of_batch(9, (1, 2))()[0]]
    assert torch.equal(torch.stack(drawn), torch.stack([alone.draw((2,)) for _ in drawn]))
    as_on_a_gpu = JobNoise.seeded(3, CPU, "nv")
    assert torch.equal(as_on_a_gpu.of_posterior((2,)), Generator(3, CPU, "cpu").draw((2,)))
    assert torch.equal(as_on_a_gpu.of_batch(0, (1, 2))()[0], Generator(3, CPU, "nv").draw((2,)))


def test_each_picture_has_a_generator_of_its_own() -> None:
    noise = PictureNoise(10, CPU).of_batch(3, (2, 4, 8, 8))
    first, second = noise(), noise()
    for row, seed in enumerate((13, 14)):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(first[row], torch.randn(4, 8, 8, generator=generator))
        assert torch.equal(second[row], torch.randn(4, 8, 8, generator=generator))


def test_a_variation_goes_from_one_noise_to_the_other() -> None:
    def start(strength: float) -> torch.Tensor:
        return PictureNoise(1, CPU, "device", 50, strength).of_batch(2, (1, 4, 8, 8))()[0]

    one, other = (torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 52))
    assert torch.equal(start(0), one)
    assert torch.allclose(start(1), other, atol=1e-5)
    assert torch.allclose(turned(one, one, 0.3), one)
    assert start(0.5).std() > 0.85, "half of each added up would have 0.71"


# Pictures


def pictures(job: AnyJob, lines: Sequence[str] | None = None) -> dict[int, Pixels]:
    init = init_image(REFERENCE / "init-128x128.png") if "init_img" in type(job).model_fields else None
    return pixels_of(draw_all(job, lines, init))


def assert_same(one: Pixels, other: Pixels) -> None:
    assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(("kind", "rng"), [(small_txt2img, "device"), (small_txt2img, "nv"), (small_img2img, "device")])
def test_a_picture_is_the_same_whatever_the_batch_and_alone(kind: Callable[..., AnyJob], rng: str) -> None:
    fields: dict[str, Any] = {"seeding": "picture", "seed": 20, "ddim_eta": 0.5, "rng": rng, "variation_seed": 4}
    fields |= {"variation_strength": 0.3, "eta_noise_seed_delta": 31337}
    batches = pictures(kind(n_samples=2, n_iter=2, **fields))
    for number, picture in pictures(kind(n_samples=4, n_iter=1, **fields)).items():
        assert_same(picture, batches[number])
    alone = {**fields, "seed": 22, "variation_seed": 6, "n_samples": 1, "n_iter": 1}
    assert_same(pictures(kind(**alone))[0], batches[2])


def test_a_job_that_was_stopped_goes_on_with_the_same_pictures() -> None:
    job = small_txt2img(seeding="picture", ddim_eta=0.5)
    whole, rest = pixels_of(draw_all(job)), pixels_of(draw_all(job, start_at=2))
    assert {*rest} == {2, 3}
    assert all(np.array_equal(whole[number], picture) for number, picture in rest.items())


def test_what_takes_a_generator_for_each_picture_is_refused_without() -> None:
    for name, value in (("variation_strength", 0.1), ("eta_noise_seed_delta", 1)):
        with pytest.raises(ValueError, match="needs seeding: picture"):
            small_txt2img(**{name: value})
    with pytest.raises(ValueError, match="needs seeding: job"):
        small_txt2img(seeding="picture", fixed_code=True)


# Jobs


def manifests(root: Root) -> list[dict[str, Any]]:
    return [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(root.done.iterdir())]


def test_a_random_seed_is_drawn_for_each_job_and_told(root: Root, clock: FakeClock) -> None:
    for number, seed in enumerate(("random", "Random", -1)):
        drop_job(root, f"{number}.yaml", f"prompt: a\nseed: {seed}\n{SMALL}")
    drain(Service(root, Settings(), FakeEngine()), clock)
    seeds = [manifest["job"]["seed"] for manifest in manifests(root)]
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert len({*seeds}) == 3


def test_a_random_seed_stays_when_a_job_is_tried_again(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", f"prompt: a\nseed: random\n{SMALL}")
    engine = FakeEngine()
    seen: list[int] = []

    def fail(task: Request) -> None:
        seen.append(task.job.seed)
        if len(seen) == 1:
            raise JobError("not now")

    engine.before = fail
    drain(Service(root, Settings(), engine), clock)
    control.retry(root, only(root.failed).name)
    service = Service(root, Settings(), engine)
    service.spool.recover()
    drain(service, clock)
    (manifest,) = manifests(root)
    assert seen == [manifest["job"]["seed"]] * 2


def test_a_random_seed_stays_when_the_service_is_killed(root: Root, clock: FakeClock, tmp_path: Path) -> None:
    drop_job(root, "a.yaml", f"prompt: a\nseed: random\n{SMALL}")
    seen = tmp_path / "seen"

    def note_and_die(task: Request) -> None:
        seen.write_text(str(task.job.seed))
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            drain(Service(root, Settings(), FakeEngine(before=note_and_die)), clock)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    service = Service(root, Settings(), FakeEngine())
    service.spool.recover()
    drain(service, clock)
    (manifest,) = manifests(root)
    assert manifest["job"]["seed"] == int(seen.read_text())


def test_a_random_file_is_no_repeat(root: Root, clock: FakeClock) -> None:
    for _ in range(2):
        drop_job(root, "a.yaml", f"prompt: a\nseed: random\n{SMALL}")
        drain(Service(root, Settings(repeats="skip"), FakeEngine()), clock)
    assert len(manifests(root)) == 2


def drawn(root: Root, clock: FakeClock, text: str, name: str = "a.yaml") -> str:
    """The id of a job that is done."""
    before = {*root.done.iterdir()}
    drop_job(root, name, text)
    drain(Service(root, Settings(), FakeEngine()), clock)
    (folder,) = {*root.done.iterdir()} - before
    return folder.name


def picture(root: Root, named: str) -> PictureRecord:
    found = History.open(root).find(named)
    assert isinstance(found, PictureRecord)
    return found


def parsed(text: str) -> AnyJob:
    (entry,) = reader.parse(text.encode(), "job.yaml")
    assert entry.job is not None
    return entry.job


def test_a_picture_with_a_seed_of_its_own_is_drawn_again_alone(root: Root, clock: FakeClock) -> None:
    text = f"prompt: a\nseed: 20\nseeding: picture\nvariation_seed: 5\nvariation_strength: 0.1\n{SMALL}"
    job_id = drawn(root, clock, text)
    assert [entry["seed"] for entry in manifests(root)[0]["pictures"]] == [20, 21, 22, 23, 24, 25]
    alone = parsed(rerun(root, picture(root, f"{job_id}/4")))
    assert (alone.seed, alone.variation_seed, alone.n_iter, alone.n_samples) == (24, 9, 1, 1)
    assert draws_more(root, History.open(root), picture(root, f"{job_id}/4")) == 0
    assert parsed(rerun(root, picture(root, f"{job_id}/4"), 7)).seed == 7
    assert picture(root, f"{job_id}/4").seed == 24
    assert [found.number for found in History.open(root).search(seed=24)] == [4]
    assert [found.number for found in History.open(root).search(seed=20)] == [0]
    child = drawn(root, clock, rerun(root, picture(root, f"{job_id}/4")), "b.yaml")
    assert manifests(root)[-1]["parent"]["job"] == job_id, child


def test_a_follow_up_goes_on_with_the_seed_of_its_picture(root: Root, clock: FakeClock) -> None:
    job_id = drawn(root, clock, f"prompt: a\nseed: 20\nseeding: picture\n{SMALL}")
    assert parsed(follow_up(root, History.open(root), picture(root, f"{job_id}/4"))).seed == 24
    assert parsed(follow_up(root, History.open(root), picture(root, f"{job_id}/4"), seed=7)).seed == 7


def test_of_a_job_with_one_generator_all_is_drawn_again(root: Root, clock: FakeClock) -> None:
    job_id = drawn(root, clock, f"prompt: a\nseed: 20\n{SMALL}")
    assert draws_more(root, History.open(root), picture(root, f"{job_id}/4")) == 6
    again = parsed(rerun(root, picture(root, f"{job_id}/4")))
    assert (again.seed, again.n_iter, again.n_samples) == (20, 2, 3)
    assert manifests(root)[0]["job"]["seeding"] == "job"


def test_a_picture_tells_its_own_seed(tmp_path: Path) -> None:
    from sdbatch.imaging.pictures import Origin, write_sample  # noqa: PLC0415

    job = small_txt2img(seed=20, seeding="picture", rng="nv")
    write_sample(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8), job, Origin("m", "0" * 64, "CPU"), 1, 3, "a")
    written = png_text.read(tmp_path / "a.png")
    assert written is not None
    assert "Seed: 23, " in written.texts["parameters"]
    assert "RNG: NV, " in written.texts["parameters"]
