"""Images that come inside a request, in base64: stored for a job, or read for their texts."""

import base64
import binascii
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps, UnidentifiedImageError
from werkzeug.datastructures import FileStorage

from sdbatch.config.settings import Settings
from sdbatch.imaging import png_text
from sdbatch.job.parameters import img2img_size
from sdbatch.messages import Message
from sdbatch.programs.sdapi_request import Img2ImgRequest, Refused
from sdbatch.storage.root import Root
from sdbatch.web import uploads

FORMATS = ("PNG", "JPEG", "WEBP")
STRETCH, CROP = 0, 1  # resize_mode


def as_init_image(asked: Img2ImgRequest, root: Root, settings: Settings) -> str:
    """Store the image of a request at the size that it asks for; returns its path from the root.

    Raises:
        Refused: it is no usable image, or there are several.
        JobError: it is too large, or there is no space for it.
    """
    if len(asked.init_images or ()) != 1:
        raise Refused(("init_images", Message("give one image")))
    if asked.resize_mode not in (STRETCH, CROP):
        raise Refused(("resize_mode", Message("must be 0 (stretch) or 1 (crop) here")))
    size = asked.width, asked.height
    if size != img2img_size(*size):
        raise Refused(("width, height", Message("img2img needs multiples of 64 here, such as 512 and 768")))
    if size[0] * size[1] > settings.limits.pixels:
        raise Refused(("width, height", Message("an image may have {most:,} pixels", settings.limits.pixels)))
    resized = _resized(decoded((asked.init_images or [""])[0], "init_images"), asked, settings.limits.init_pixels)
    sent = FileStorage(io.BytesIO(resized), "image.png", content_type="image/png")
    return uploads.take(sent, root, settings)


def _resized(data: bytes, asked: Img2ImgRequest, most_pixels: int) -> bytes:
    """As PNG, in the size that is asked for."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > most_pixels:
                raise Refused(("init_images", Message("an init image may have {most:,} pixels", most_pixels)))
            image = ImageOps.exif_transpose(opened).convert(_mode(opened))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = Message("is no readable PNG, JPEG or WebP: {problem}", str(error)[:200])
        raise Refused(("init_images", why)) from error
    size = asked.width, asked.height
    if image.size != size:
        how = Image.Resampling.LANCZOS
        image = image.resize(size, how) if asked.resize_mode == STRETCH else ImageOps.fit(image, size, how)
    kept = io.BytesIO()
    image.save(kept, "PNG", compress_level=1)
    return kept.getvalue()


def _mode(image: Image.Image) -> str:
    return "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"


def decoded(text: str, field: str) -> bytes:
    """The bytes of an image in base64, with or without `data:image/png;base64,` before it."""
    if text.startswith(("http://", "https://")):
        raise Refused((field, Message("is a URL, and nothing is downloaded; send the image itself in base64")))
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused((field, Message("is no image in base64"))) from error


def texts(data: bytes) -> dict[str, str]:
    """The texts in an image about how it was generated; none if it is no image."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(data)
        written = png_text.read(path)
    return written.texts if written else {}
