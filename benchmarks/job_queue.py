"""A queue of small jobs, and who draws it: the plain library, and sdbatch as it is set."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEMO = HERE.parent / "sdbatch" / "data" / "demo"
V1 = HERE.parent / "configs" / "stable-diffusion" / "v1-inference.yaml"
OFFLINE = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}
PROMPTS = ("a blue truck", "a red car", "a spider on a truck", "a green house")
SECONDS = 900


@dataclass(frozen=True)
class Setting:
    """What is drawn, and where: the demo's model on a CPU, one of v1's shapes on a GPU."""

    device: str
    side: int
    ckpt: Path
    config: Path

    def job(self, number: int) -> dict[str, Any]:
        """One to three images, three step counts, two scales."""
        return {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "H": self.side,
            "W": self.side,
            "n_iter": 1,
            "n_samples": 1 + number % 3,
            "ddim_steps": (10, 20, 50)[number // 3 % 3],
            "scale": (7.5, 4.0)[number % 2],
            "seed": number,
            "skip_grid": True,
            "outdir": f"outputs/{number}",
        }


def setting_for(device: str, place: Path, *, small: bool) -> Setting:
    """With a checkpoint of random numbers, made in `place`, where the demo's is too small."""
    if device == "cpu" or small:
        return Setting(device, 64, DEMO / "model.safetensors", DEMO / "v1-inference.yaml")
    sys.path.insert(0, str(HERE.parent / "tests"))
    from full_size import write_random_checkpoint

    ckpt = place / "model.safetensors"
    write_random_checkpoint(ckpt, V1)
    return Setting(device, 512, ckpt, V1)


def pipeline(setting: Setting) -> Any:
    """Diffusers' own, with the same weights; on a GPU in float16."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline  # before ours, which would import less
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from sdbatch.renderer.models.models import load_model

    model = load_model(setting.ckpt, setting.config)
    model.vae.register_to_config(scaling_factor=model.scale_factor)
    text_encoder = CLIPTextModel(CLIPTextConfig(**asdict(model.text_encoder.config))).eval()
    text_encoder.load_state_dict(model.text_encoder.state_dict())
    words = HERE.parent / "sdbatch" / "data" / "clip"
    tokenizer = CLIPTokenizer(vocab=str(words / "vocab.json"), merges=str(words / "merges.txt"), model_max_length=77)
    made = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made if setting.device == "cpu" else made.to(setting.device, torch.float16)


def draw_one(pipe: Any, job: dict[str, Any], folder: Path) -> None:
    """A job to PNG files."""
    import torch

    images = pipe(
        [job["prompt"]] * job["n_samples"],
        height=job["H"],
        width=job["W"],
        num_inference_steps=job["ddim_steps"],
        guidance_scale=job["scale"],
        generator=torch.Generator(pipe.device).manual_seed(job["seed"]),
    ).images
    for i, image in enumerate(images):
        image.save(folder / f"{job['seed']}-{i:05}.png")


@dataclass
class Loop:
    """A process with diffusers' pipeline, which stays; a line names a folder of jobs, the answer are the seconds."""

    setting: Setting
    place: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        self.process = child("serve_loop(*sys.argv[1:])", self.setting, piped=True)
        self._line()

    def run(self, jobs: Iterable[int]) -> float:
        """Seconds for these jobs."""
        assert self.process.stdin
        folder = fill(self.place / str(time.monotonic_ns()), self.setting, jobs)
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()


def serve_loop(*given: str) -> None:
    """In the child."""
    setting = given_setting(given)
    pipe = pipeline(setting)
    draw_one(pipe, setting.job(0), Path("/tmp"))  # what the libraries set up at their first use
    print("ready", flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        began = time.perf_counter()
        for path in sorted(folder.glob("*.json")):
            draw_one(pipe, json.loads(path.read_text()), folder)
        print(time.perf_counter() - began, flush=True)


def time_processes(setting: Setting, place: Path, jobs: int, alone: int) -> float:
    """Seconds for so many jobs, each in a process of its own, found from `alone` of them spread over the mix."""
    numbers, spent = range(0, jobs, -(-jobs // alone)), 0.0
    for number in numbers:
        folder = fill(place / f"alone-{time.monotonic_ns()}", setting, [number])
        began = time.perf_counter()
        child("alone(*sys.argv[1:])", setting, str(folder)).wait()
        spent += time.perf_counter() - began
    return spent / len(numbers) * jobs


def alone(*given: str) -> None:
    """In the child: the one job of a folder."""
    (path,) = Path(given[-1]).iterdir()
    draw_one(pipeline(given_setting(given)), json.loads(path.read_text()), path.parent)


@dataclass
class Service:
    """`sdbatch serve` on a root of its own; `ready` once its model is loaded."""

    setting: Setting
    root: Path
    settings: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    drawn: int = 0
    started: float = 0  # seconds to the first image

    def __post_init__(self) -> None:
        is_demo = self.setting.ckpt.is_relative_to(DEMO)
        command = [sys.executable, "-m", "sdbatch", "init", str(self.root), *["--demo"] * is_demo]
        subprocess.run(command, check=True, capture_output=True)
        if not is_demo:
            link = self.root / "models" / "ldm" / "stable-diffusion-v1" / "model.ckpt"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.setting.ckpt)
        self.start()

    def start(self) -> None:
        """Begin."""
        self._began = time.perf_counter()
        environment = os.environ | {f"SDBATCH_{name.upper()}": value for name, value in self.settings.items()}
        # The checkpoint can be mapped as it is; each root would convert it for itself.
        environment |= {"SDBATCH_CONVERTED_BYTES": "0", "SDBATCH_SETTLE_SECONDS": "0"}
        environment |= {"SDBATCH_DEVICES": self.setting.device}
        with (self.root / "log").open("a") as log:
            command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(self.root)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def ready(self) -> None:
        """Wait until its first job is done."""
        self.run([0])
        self.started = time.perf_counter() - self._began

    def run(self, jobs: Iterable[int]) -> float:
        """Seconds from the first file in the inbox to the last job in done/."""
        paths = sorted(fill(self.root / "jobs" / "made", self.setting, jobs).iterdir())
        began = time.perf_counter()
        for path in paths:
            path.rename(self.root / "jobs" / "inbox" / path.name)
        self.drawn += len(paths)
        wait(lambda: self._done() == self.drawn)
        return time.perf_counter() - began

    def warm_up(self, jobs: Iterable[int]) -> None:
        """Draw jobs until all that they need is compiled."""
        jobs = list(jobs)
        for _ in range(4):  # a shape is compiled when it was needed some times, and tried when it is needed again
            self.run(jobs)
            wait(self._is_nothing_compiled)

    def images(self, number: int) -> list[Path]:
        """Those of a job, at its first time."""
        return sorted((self.root / "outputs" / str(number) / "samples").glob("*.png"))[: 1 + number % 3]

    def close(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait()

    def _done(self) -> int:
        """How many jobs are; one that failed ends the benchmark."""
        if self.process.poll() is not None or any(self._in("failed")):
            raise SystemExit(f"a job failed; see {self.root}/log\n{(self.root / 'log').read_text()[-3000:]}")
        return len(self._in("done"))

    def _in(self, where: str) -> list[str]:
        return [entry.name for entry in os.scandir(self.root / "jobs" / where) if not entry.name.startswith(".")]

    def _is_nothing_compiled(self) -> bool:
        time.sleep(2)
        return not [*(self.root / "state").glob("compiled/*/*.recipe")]


def child(code: str, setting: Setting, *more: str, piped: bool = False) -> subprocess.Popen[str]:
    """A function of this file in a process of its own."""
    given = (setting.device, str(setting.side), str(setting.ckpt), str(setting.config), *more)
    command = [sys.executable, "-c", f"import sys; from job_queue import *; {code}", *given]
    pipe = subprocess.PIPE if piped else None
    return subprocess.Popen(command, cwd=HERE, env=os.environ | OFFLINE, stdin=pipe, stdout=pipe, text=True)


def given_setting(given: tuple[str, ...]) -> Setting:
    """From the arguments of `child`."""
    device, side, ckpt, config, *_ = given
    return Setting(device, int(side), Path(ckpt), Path(config))


def fill(folder: Path, setting: Setting, numbers: Iterable[int]) -> Path:
    """A folder with these jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.json").write_text(json.dumps(setting.job(number)))
    return folder


def wait(is_so: Callable[[], bool]) -> None:
    """Until something is so."""
    until = time.monotonic() + SECONDS
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)
