"""What happens to images after decoding: safety checker and watermark."""

from dataclasses import dataclass

from sdbatch.imaging.pictures import Pixels
from sdbatch.messages import Message
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures.safety import SafetyChecker, grey_card
from sdbatch.renderer.pictures.watermark import Watermark, has_room


@dataclass(frozen=True)
class Postprocess:
    """The postprocessing of one job."""

    checker: SafetyChecker | None
    watermark: Watermark | None

    @property
    def origin(self) -> dict[str, str]:
        """The postprocessing as an image's text states it, because it changes the image."""
        said = {"safety_checker": self.checker.sha256} if self.checker else {}
        return said | ({"watermark": self.watermark.text} if self.watermark else {})

    def apply(self, pixels: Pixels, fallback: MemoryFallback) -> list[Pixels]:
        """The images [batch, H, W, 3] of a batch after postprocessing; changes are reported."""
        finished = list(pixels)
        withheld = self.checker.withheld(pixels, fallback) if self.checker else []
        for i in withheld:
            finished[i] = grey_card(*finished[i].shape[:2])
        if withheld:
            numbers = ", ".join(str(fallback.first + i) for i in withheld)
            fallback.tell(Message("withheld by the safety checker, replaced by a grey card: image {numbers}", numbers))
        if self.watermark and not has_room(pixels[0]):
            fallback.tell(Message("images under 256x256 pixels are too small for a watermark"))
        return [self.mark(picture) for picture in finished]

    def mark(self, pixels: Pixels) -> Pixels:
        """An image or grid with the watermark, if there is one."""
        return self.watermark.mark(pixels) if self.watermark else pixels
