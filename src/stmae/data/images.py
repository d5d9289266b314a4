"""Still images as clips: every frame of the clip is the image."""

from __future__ import annotations

import numpy as np

from stmae.data.clips import NOMINAL_FPS
from stmae.data.container import MAX_PIXELS, DecodeError, reasons
from stmae.data.media import Choose, Media, Take
from stmae.data.video import Reading

DURATION = 1 / NOMINAL_FPS  # seconds: of one frame; longer ones would be cut into windows


def read_clips(media: Media, clips: int, choose: Choose, take: Take) -> Reading:
    """Gives the image for every frame of every clip; arguments as in `media.read_clips`.

    Raises:
        DecodeError: it cannot be decoded, or is larger than any memory.
    """
    pixels = read_image(media)
    for clip in range(clips):
        for position in range(len(choose(clip, DURATION))):
            take(clip, position, pixels)
    return Reading(DURATION, [False] * clips, still=True)


def read_image(media: Media) -> np.ndarray:
    """uint8 (H, W, 3), upright; of an animation the first picture; 16 bits are cut down to 8."""
    from PIL import Image, ImageOps

    with reasons(media, "cannot be opened"), media.open() as file:
        if not file.read(1):
            raise DecodeError(media, "the file is empty")
        file.seek(0)
        with Image.open(file) as found:
            if found.width * found.height > MAX_PIXELS:
                raise DecodeError(media, f"claims {found.width} x {found.height} pixels, more than {MAX_PIXELS}")
            if found.mode == "F":
                raise DecodeError(media, "holds floating-point numbers: save it as an array (.npy or .tiff)")
            image = ImageOps.exif_transpose(found)
            if image.mode.startswith("I"):  # PIL would cut off everything above 255
                grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
            return np.array(image.convert("RGB"))
