"""Decoding images to pixels. Formats that would lose information silently are refused."""

import io

import numpy as np

from jaxtrain.base.packages import needs

_PNG = b"\x89PNG\r\n\x1a\n"

_DEPTH = 24  # the byte of a PNG file that holds the number of bits per sample


def pixels(raw: bytes, size: tuple[int, int] | None, gray: bool) -> np.ndarray:
    """u8[Y, X, C] of an encoded image, resized to `size` (height, width) if given; C is 1 if `gray`, else 3.

    The EXIF orientation is applied, palettes are converted to colours, transparent pixels are blended with white, and
    of an animation the first frame is read. `gray` is the luma of ITU-R BT.601. Raises ValueError for 16 or 32 bits a
    sample, for colours other than gray and RGB, such as CMYK, and for bytes that are not an image.
    """
    with needs("reading an image", "Pillow", "images"):
        from PIL import Image, ImageOps, UnidentifiedImageError
    if raw.startswith(_PNG) and raw[_DEPTH : _DEPTH + 1] == b"\x10":  # Pillow would silently keep 8 bits of RGB
        raise ValueError("it has 16 bits a sample: save it with 8, scaled as you want them")
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError as error:
        what = f"it begins with {raw[:12]!r}" if raw else "it is empty"
        raise ValueError(f"cannot identify image file: {what}") from error
    except Exception as error:  # Pillow's decoders raise many classes, SyntaxError among them
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
