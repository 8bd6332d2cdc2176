"""One image file as bytes: which files count as images, and how every kind of pixel becomes grey or RGB."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm")
SUFFIXES += (".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp")
WHITE_IS_ZERO = 0  # the value of TIFF's PhotometricInterpretation for inverted grey


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image's suffix, in upper or lower case.

    >>> is_image_name("cat.JPEG"), is_image_name("cat.txt")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES)


def decode(path: Path, size: int, channels: int) -> Tensor:
    """Return an image as (channels, size, size) bytes: scaled to cover the square, and cropped at the centre.

    path: an image file. Of several frames or pages, the first is read.
    size: side in pixels.
    channels: 1 for grey, 3 for RGB. CMYK is converted without its colour profile.

    The EXIF orientation is applied, and transparent areas become white. Grey pixels of 9 to 16 bits keep their upper
    8 bits. Floats must lie in [0, 1], which is scaled to [0, 255].

    Raise ValueError for other number formats, whose white level is undefined; OSError, SyntaxError and others from
    Pillow for a damaged file.
    """
    with Image.open(path) as original:
        image = _with_eight_bits(ImageOps.exif_transpose(original), original)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).reshape(size, size, channels)).permute(2, 0, 1)


def _with_eight_bits(image: Image.Image, original: Image.Image) -> Image.Image:
    """Reduce a grey image of higher bit depth, which Pillow would clip, to 8 bits; return others unchanged.

    original: the same image as opened, which has the attribute ``format``.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    tags = original.tag_v2 if isinstance(original, TiffImageFile) else {}
    pixels = np.asarray(image)
    if image.mode == "F":
        low, high = float(pixels.min()), float(pixels.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"float pixels must lie in [0, 1], got {low:g} to {high:g}; divide by the white level")
        grey = np.rint(pixels * 255)
    elif image.mode == "I" and original.format != "PPM":  # Pillow scales those of PPM to 16 bits
        raise ValueError("32-bit or signed integer pixels have no defined white level; save as 8 or 16 bits")
    else:
        grey = pixels >> (tags.get(BITSPERSAMPLE, (16,))[0] - 8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:  # Pillow inverts those of 8 bits only
        grey = 255 - grey
    grey = np.where(pixels == image.info.get("transparency", -1), 255, grey)
    return Image.fromarray(grey.astype(np.uint8))
