"""The part of `sdbatch doctor` that needs torch.

It runs as a child process, because torch may crash. Each finding is sent at once as a line of JSON, so that those
before a crash count. No socket may connect beyond this machine here: each attempt is noted and refused.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sdbatch.engine.finding import NVIDIA_DRIVER, Finding, ok, problem, warning
from sdbatch.errors import SdbatchError
from sdbatch.messages import Message, pack

ASKING = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"}
CAT = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])  # in OpenAI's vocabulary

REINSTALL = Message("reinstall sdbatch with all its dependencies (make, or the bundle's install.sh)")
NO_GPU = Message(
    "see nvidia-smi; a torch built for a newer CUDA than the driver supports needs a newer "
    "driver, or a torch for an older CUDA. To use the CPU, set `devices: cpu` in "
    "configs/sdbatch.yaml"
)
MISFIT = Message("copy a complete Stable Diffusion v1 checkpoint there (compare its sha256), and its config")


def examine(device: str, model: tuple[Path, Path] | None, asked: list[str]) -> Iterator[Finding]:
    """Check libraries, device, tokenizer, model and network, in this order; `asked` lists uses of the network."""
    yield _told("torch", libraries, REINSTALL)
    yield _told("device", partial(drawing_device, device), NO_GPU)
    yield _told("tokenizer", tokenizer, REINSTALL)
    if model is not None:
        yield _told("checkpoint", partial(fitting, *model), MISFIT)
    yield network(asked)


def _told(about: str, check: Callable[[], Finding], remedy: str) -> Finding:
    """The findings of `look`; any exception is a problem, because libraries raise anything."""
    try:
        return check()
    except SdbatchError as error:
        return problem(about, str(error), remedy)
    except Exception as error:  # noqa: BLE001 - see above
        return problem(about, f"{type(error).__name__}: {error}".strip(), remedy)


def libraries() -> Finding:
    """Whether all can be imported."""
    import diffusers  # noqa: PLC0415 - what is to be found out here is whether they can be imported
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    cuda = Message("built for CUDA {cuda}", torch.version.cuda) if torch.version.cuda else Message("built without CUDA")
    return ok(
        "torch",
        "{torch}, {cuda}; diffusers {diffusers}, transformers {transformers}",
        torch.__version__,
        cuda,
        diffusers.__version__,
        transformers.__version__,
    )


def drawing_device(asked: str) -> Finding:
    """Whether the configured device can compute: a GPU may be present but too new."""
    import torch  # noqa: PLC0415

    from sdbatch.renderer.renderer import find_device  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            device = find_device(asked)
            drawn = torch.nn.functional.conv2d(
                torch.ones(1, 1, 8, 8, device=device), torch.ones(1, 1, 3, 3, device=device)
            )
            if float(drawn.sum()) != 36 * 9:
                return problem(
                    "device", "{device} computes wrongly: {result} instead of 324", NO_GPU, asked, float(drawn.sum())
                )
        except Exception as error:
            # Torch only warns why it finds no GPU, such as "The NVIDIA driver on your system is too old".
            for said in heard:
                error.args = (Message("{problem}; torch says: {message}", error, said.message),)
            raise
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        text = Message(
            "{gpu}, {free} of {whole} GiB free, {driver}",
            torch.cuda.get_device_name(device),
            f"{free / 2**30:.1f}",
            f"{whole / 2**30:.1f}",
            _driver(),
        )
        return ok("device", text)
    if asked == "auto" and NVIDIA_DRIVER.exists():
        text = Message(
            "jobs will run on the CPU: there is an NVIDIA GPU, but this torch ({version}) can't use it",
            torch.__version__,
        )
        return warning("device", text, Message("install a torch that is built for CUDA; {no_gpu}", NO_GPU))
    return ok("device", "the CPU, {count} threads (a 512x512 image takes minutes)", torch.get_num_threads())


def _driver() -> str:
    try:
        words = NVIDIA_DRIVER.read_text().split()
    except OSError:
        return Message("driver unknown")
    return f"driver {next((word for word in words if word[:1].isdigit() and '.' in word), 'unknown')}"


def tokenizer() -> Finding:
    """Whether the vocabulary in the package is OpenAI's."""
    from sdbatch.renderer.networks.tokenizer import clip_tokenizer  # noqa: PLC0415

    text, tokens = CAT
    words = clip_tokenizer()
    found = [words.marks[0], *words.encode(text), words.marks[1]]
    if found != tokens:
        return problem("tokenizer", '"{text}" gives {found}, not {tokens}', REINSTALL, text, found, tokens)
    return ok("tokenizer", "CLIP's vocabulary, from the package")


def fitting(ckpt: Path, config: Path) -> Finding:
    """Whether the checkpoint loads and fits its config, with the renderer's own check on the CPU."""
    from sdbatch.renderer.models.models import load_model  # noqa: PLC0415

    model = load_model(ckpt, config)
    numbers = sum(p.numel() for part in (model.unet, model.vae, model.text_encoder) for p in part.parameters())
    fits = Message("is whole") if ckpt.is_dir() else Message("fits {name}", config.name)
    return ok("checkpoint", "{ckpt} {fits}: {number} million weights", ckpt, fits, f"{numbers / 1e6:,.0f}")


def network(asked: list[str]) -> Finding:
    """Whether anything so far tried to connect beyond this machine."""
    if asked:
        return problem(
            "network",
            "something tried to use it, and was refused: {names}",
            "generating needs no network; please report this line to the authors of sdbatch",
            ", ".join(dict.fromkeys(asked)),
        )
    return ok("network", "not needed: nothing has asked for it so far")


def guard(asked: list[str]) -> None:
    """Refuse all connections beyond this machine from now on, and note them in `asked`."""

    def refuse(event: str, args: tuple[object, ...]) -> None:
        if event not in ASKING:
            return
        address = args[0] if event.startswith("socket.get") else args[-1]
        if isinstance(address, tuple):  # else a path: sockets of this machine's own
            address = address[0]
        elif not event.startswith("socket.get"):
            return
        asked.append(f"{address} ({event.removeprefix('socket.')})")
        raise PermissionError(Message("sdbatch doctor blocks the network, also {address}", address))

    sys.addaudithook(refuse)


def main() -> None:
    """`python -m sdbatch.renderer.examine FD DEVICE [CKPT CONFIG]`: findings go to the file descriptor FD."""
    answers, device, *model = sys.argv[1:]
    asked: list[str] = []
    guard(asked)
    with os.fdopen(int(answers), "w", encoding="utf-8") as pipe:
        for finding in examine(device, (Path(model[0]), Path(model[1])) if model else None, asked):
            print(json.dumps({name: pack(text) for name, text in asdict(finding).items()}), file=pipe, flush=True)


if __name__ == "__main__":
    main()
