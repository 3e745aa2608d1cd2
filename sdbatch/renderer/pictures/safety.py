"""The safety checker of the original scripts: a CLIP vision model that compares images with unsafe concepts.

As in the scripts, an image that it finds is replaced by a grey card. The library uses a black image, which would look
like a real black image. The scripts only check txt2img; here img2img is checked too, or a follow-up would bypass the
checker.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdbatch.errors import EngineDown, JobError
from sdbatch.imaging.pictures import Pixels
from sdbatch.job.model_config import MAX_CONFIG_BYTES
from sdbatch.messages import Message
from sdbatch.renderer.device.memory import is_out_of_memory
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.diffusers_folder import ENDINGS, STEMS
from sdbatch.renderer.models.plan import ModelPart
from sdbatch.renderer.weights.checkpoint import read_weights
from sdbatch.renderer.weights.limits import require_within_limits
from sdbatch.storage import files
from sdbatch.storage.fingerprint import fingerprint

GREY = (128, 128, 128)
CARD = "withheld by\nthe safety checker"
# Of CLIP's training pictures, by colour.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)

LIBRARY = "diffusers.pipelines.stable_diffusion.safety_checker"
logging.getLogger(LIBRARY).setLevel(logging.ERROR)  # it warns about black images, which are not used here


class SafetyChecker:
    """A loaded checker.

    Raises:
        JobError: the folder contains no checker, or a damaged one.
    """

    def __init__(self, folder: Path, device: torch.device, checksums: Path) -> None:
        self.folder, self.device = folder, device
        self._network = _fill(_build(folder), folder).to(device)
        self._side = int(self._network.config.vision_config.image_size)
        self.sha256 = fingerprint(folder, checksums)

    def withheld(self, pixels: Pixels, fallback: MemoryFallback) -> list[int]:
        """The numbers of the images [batch, H, W, 3] to replace."""
        seen = torch.from_numpy(np.stack([clip_input(picture, self._side) for picture in pixels]))
        flags = fallback.in_rows(self._flag, seen.to(self.device))
        return [i for i, flag in enumerate(flags.tolist()) if flag]

    @torch.inference_mode()
    def _flag(self, seen: Tensor) -> Tensor:
        blackened = [np.zeros(1)] * len(seen)
        return torch.tensor(self._network(clip_input=seen, images=blackened)[1])


class Checkers:
    """Which checker is used for which model; the last one stays loaded.

    Attributes:
        choice: `auto` for the checker in the model's folder, if there is one; `off`; or the folder of one for all.

    Raises:
        EngineDown: there is no such folder.
    """

    def __init__(self, choice: str, device: torch.device, checksums: Path) -> None:
        self.choice, self.device, self.checksums = choice, device, checksums
        self._loaded: SafetyChecker | None = None
        if choice not in {"auto", "off"} and not Path(choice, "config.json").is_file():
            raise EngineDown(
                "safety_checker: {choice} is not a folder with a safety checker (config.json and weights); "
                "it is set in configs/sdbatch.yaml",
                choice,
            )

    def of(self, ckpt: Path, fallback: MemoryFallback) -> SafetyChecker | None:
        """The checker of a model.

        Raises:
            JobError: it can't be loaded.
        """
        own = ckpt / "safety_checker"
        folder = (own if own.is_dir() else None) if self.choice == "auto" else Path(self.choice)
        if folder is None or self.choice == "off":
            self._loaded = None  # an idle gigabyte could force another model to decode in tiles
            return None
        if self._loaded is None or self._loaded.folder != folder:
            self._loaded = None
            self._loaded = fallback.run(lambda: SafetyChecker(folder, self.device, self.checksums), lambda: "")
        return self._loaded


def grey_card(height: int, width: int) -> Pixels:
    """The card that replaces an image, [H, W, 3]."""
    picture = Image.new("RGB", (width, height), GREY)
    font = ImageFont.load_default(size=max(6, width // 14))
    place = (width / 2, height / 2)
    ImageDraw.Draw(picture).multiline_text(place, CARD, fill="white", font=font, anchor="mm", align="center")
    return np.asarray(picture)


def clip_input(pixels: Pixels, side: int) -> npt.NDArray[np.float32]:
    """An image as [3, side, side]: short side scaled, centre cropped, colours normalized (as in CLIP)."""
    picture = Image.fromarray(pixels)
    width, height = (side * length // min(picture.size) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    scaled = picture.resize((width, height), resample=Image.Resampling.BICUBIC)
    middle = np.asarray(scaled.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return ((middle - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def _build(folder: Path) -> Any:
    """The empty network that the folder's config.json describes."""
    # Seconds of imports that nobody else needs.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker  # noqa: PLC0415
    from transformers import CLIPConfig  # noqa: PLC0415

    try:
        content = json.loads(files.read_file(folder / "config.json", MAX_CONFIG_BYTES))
        require_within_limits(Message("config.json of the safety checker in {name}", folder.name), content)
        config = CLIPConfig.from_dict(content)
        with torch.device("meta"):
            return StableDiffusionSafetyChecker(config)
    except JobError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise JobError("the safety checker in {name} has no usable config.json; copy it again", folder.name) from error


def _fill(network: Any, folder: Path) -> Any:
    """Fill it with the folder's weights in float32; libraries would fill missing ones with random numbers."""
    names = [folder / f"{stem}{ending}" for ending in ENDINGS for stem in STEMS["text_encoder"]]
    path = next((path for path in names if path.is_file()), None)
    if path is None:
        template = "the safety checker in {name} has no weights, such as {example}; copy it again"
        raise JobError(template, folder.name, names[0].name)
    found = {_plain(key): weight for key, weight in read_weights(path, f"safety_checker/{path.name}").items()}
    part = ModelPart(network, _plain, computes_in_half=False)
    if lacking := next(part.lacking(found), ""):
        template = "the safety checker in {name} does not fit its config.json: {key}; copy it again"
        raise JobError(template, folder.name, lacking)
    part.fill(found, torch.float32, {})
    for module in network.modules():
        if hasattr(module, "position_ids"):  # a buffer that no file needs to hold
            module.position_ids = torch.arange(module.position_ids.shape[-1]).unsqueeze(0)
    return network.requires_grad_(requires_grad=False).eval()


def _plain(key: str) -> str:
    """A weight's name without a repeated part that transformers 5 dropped and every checker's file has."""
    return key.replace("vision_model.vision_model.", "vision_model.")
