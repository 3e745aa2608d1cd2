"""What is done to pictures between the decoder and the file: withheld, marked."""

from dataclasses import dataclass

from sdbatch.imaging.pictures import Pixels
from sdbatch.messages import Message
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures.safety import SafetyChecker, card
from sdbatch.renderer.pictures.watermark import Watermark, has_room


@dataclass(frozen=True)
class Postprocess:
    """The finish of one job's pictures."""

    checker: SafetyChecker | None
    watermark: Watermark | None

    @property
    def origin(self) -> dict[str, str]:
        """What a picture's text says of it: one that was finished otherwise is another picture."""
        said = {"safety_checker": self.checker.sha256} if self.checker else {}
        return said | ({"watermark": self.watermark.text} if self.watermark else {})

    def apply(self, pixels: Pixels, fallback: MemoryFallback) -> list[Pixels]:
        """The pictures [batch, H, W, 3] of a batch, finished one by one; what was done is told."""
        finished = list(pixels)
        withheld = self.checker.withheld(pixels, fallback) if self.checker else []
        for i in withheld:
            finished[i] = card(*finished[i].shape[:2])
        if withheld:
            numbers = ", ".join(str(fallback.first + i) for i in withheld)
            fallback.tell(
                Message("withheld by the safety checker, a grey card in its place: picture {numbers}", numbers)
            )
        if self.watermark and not has_room(pixels[0]):
            fallback.tell(Message("pictures under 256x256 pixels are too small for a watermark"))
        return [self.mark(picture) for picture in finished]

    def mark(self, pixels: Pixels) -> Pixels:
        """A picture or a grid with the watermark, if there is one."""
        return self.watermark.mark(pixels) if self.watermark else pixels
