"""Encoded images to pixels: what is decoded is decoded right, anything else is refused by name."""

import io

import numpy as np

from jaxtrain.base.packages import needs

_PNG = b"\x89PNG\r\n\x1a\n"

_DEPTH = 24  # the byte of a PNG that holds the bits of a sample


def pixels(raw: bytes, size: tuple[int, int] | None, gray: bool) -> np.ndarray:
    """u8[Y, X, C] of an encoded image, resized to `size` (height, width) if given; C is 1 if `gray`, else 3.

    The orientation in the EXIF data is applied. A palette becomes its colours. What is transparent is laid over white.
    `gray` is the luma of ITU-R BT.601. Of an animation it is the first frame. Raises ValueError for 16 and 32 bits a
    sample and for other colours than gray and RGB, such as CMYK, and where it is no image.
    """
    with needs("reading an image", "Pillow", "images"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    if raw.startswith(_PNG) and raw[_DEPTH : _DEPTH + 1] == b"\x10":  # of RGB, Pillow keeps 8 of them and is silent
        raise ValueError("it has 16 bits a sample: save it with 8, scaled as you want them")
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        what = f"it begins with {raw[:12]!r}" if raw else "it is empty"
        raise ValueError(f"cannot identify image file: {what}") from error
    except Exception as error:  # Pillow's formats raise kinds of their own, SyntaxError among them
        raise ValueError(str(error)) from error
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ValueError(f"its pixels are {image.mode}: save it as gray or RGB with 8 bits a sample")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    image = image.convert("RGB").convert("L") if gray else image.convert("RGB")
    if size is not None:
        image = image.resize((size[1], size[0]))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, -1)
