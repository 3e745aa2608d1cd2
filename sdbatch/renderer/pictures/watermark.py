"""The invisible watermark of the original scripts (`put_watermark`): a text hidden in frequencies (dwtDct).

The scripts mark only txt2img; here img2img is marked too. The method needs 256x256 pixels, or as many in another shape.
On smaller images the scripts fail; here they get no watermark.
"""

import numpy as np

from sdbatch.errors import EngineDown
from sdbatch.imaging.pictures import Pixels

LEAST_PIXELS = 256 * 256


class Watermark:
    """Writes one text into images.

    Raises:
        EngineDown: its package is not installed; no image is better than one without the watermark.
    """

    def __init__(self, text: str) -> None:
        try:
            from imwatermark import WatermarkEncoder  # noqa: PLC0415 - an extra, and OpenCV takes its time
        except ImportError as error:
            raise EngineDown(
                "watermark: needs the package invisible-watermark ({problem}); install sdbatch[watermark], "
                "or remove `watermark` from configs/sdbatch.yaml",
                error,
            ) from error
        self.text = text
        self._encoder = WatermarkEncoder()
        self._encoder.set_watermark("bytes", text.encode())

    def mark(self, pixels: Pixels) -> Pixels:
        """An image [H, W, 3] with the watermark; unchanged if it is too small."""
        if not has_room(pixels):
            return pixels
        bgr = np.ascontiguousarray(pixels[:, :, ::-1])
        try:
            marked: Pixels = np.ascontiguousarray(self._encoder.encode(bgr, "dwtDct")[:, :, ::-1])
        except Exception as error:  # OpenCV's own, which is no MemoryError
            raise (MemoryError(str(error)) if "nsufficient memory" in str(error) else error) from error
        return marked


def has_room(pixels: Pixels) -> bool:
    """Whether an image is large enough."""
    height, width = pixels.shape[:2]
    return bool(height * width >= LEAST_PIXELS)
