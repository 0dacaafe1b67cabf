"""Pictures: an Image to and from Pillow, numpy and torch.

Arrays are height x width x channels, uint8 from 0 to 255, as Pillow, OpenCV and matplotlib have
them. Reading is guarded: raster formats only, and at most `MOST_PIXELS`, looked up before anything
is decoded. Pillow is imported when it is first needed (`pip install pillow`).
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Self

from ...schemas.files import File
from ...schemas.storing import Errand, Repository

if TYPE_CHECKING:
    import numpy
    import PIL.Image
    import torch

MiB = 1024 * 1024
# Raster formats only: Pillow hands others, EPS for one, to programs that run what is in them.
PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 64 * 1024 * 1024  # 192 MiB in RGB: larger than cameras make, and no bomb
HOW = {"png": {"compress_level": 1}, "jpeg": {"quality": 95}, "webp": {"quality": 95}}
OPAQUE = ("L", "RGB", "CMYK")  # the modes that JPEG can hold
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


class Image(File):
    """A File that is a picture; `width` and `height` in pixels when somebody said them.

    At most 50 MiB are downloaded, for 30 seconds at most.
    """

    fields = (*File.fields, "width", "height")
    ui = "image"
    errand = Errand(most_bytes=50 * MiB, seconds=30)

    def __init__(
        self,
        url: str,
        content_type: str | None = None,
        file_name: str | None = None,
        file_size: int | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        super().__init__(url, content_type, file_name, file_size)
        self.width, self.height = width, height

    @classmethod
    def from_bytes(  # type: ignore[override]
        cls, data: bytes, format: str | None = None, size: Any = None, file_name: str | None = None, **options: Any
    ) -> Self:
        """Store an encoded picture. `format` is png, jpeg, jpg, webp or gif; `size` an object with width and height.

        The rest is as for `File.from_bytes`, `content_type` included.
        """
        if format is not None:
            name = _format(format)
            options.setdefault("content_type", f"image/{name}")
        image = super().from_bytes(data, file_name=file_name, **options)
        if size is not None:
            image.width, image.height = size if isinstance(size, tuple) else (size.width, size.height)
        return image

    @classmethod
    def from_pil(
        cls,
        pil_image: PIL.Image.Image,
        format: str | None = None,
        file_name: str | None = None,
        repository: Repository = "fal_v3",
        **options: Any,
    ) -> Self:
        """Encode and store a Pillow image: as `format`, else as the format it was opened from, else PNG.

        JPEG has no transparency: an alpha channel is dropped. The rest is as for `File.from_bytes`.
        """
        kind = _format(format or pil_image.format or "png")
        if kind == "jpeg" and pil_image.mode not in OPAQUE:
            pil_image = pil_image.convert("RGB")
        held = io.BytesIO()
        pil_image.save(held, kind.upper(), **HOW.get(kind, {}))
        return cls.from_bytes(held.getvalue(), kind, pil_image.size, file_name, repository=repository, **options)

    @classmethod
    async def from_pil_async(cls, *arguments: Any, **options: Any) -> Self:
        """As `from_pil`, without blocking the event loop."""
        return await asyncio.to_thread(cls.from_pil, *arguments, **options)

    @classmethod
    def from_numpy(cls, array: numpy.ndarray[Any, Any], format: str = "png", file_name: str | None = None, **options: Any) -> Self:
        """Encode and store an array: (height, width), or (height, width, channels) with 1, 3 or 4 of them; uint8.

        Raises ValueError for another shape or type, for a picture in 0..1 must be scaled knowingly.
        """
        import numpy
        import PIL.Image

        if array.dtype != numpy.uint8:
            raise ValueError(f"an image of {array.dtype} cannot be encoded; give uint8 from 0 to 255, such as (x * 255).round().clip(0, 255).astype('uint8')")
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.shape[2] not in CHANNELS:
            raise ValueError(f"an image of shape {array.shape} cannot be encoded; give (height, width, channels) with 1, 3 or 4 channels")
        plain = array[:, :, 0] if array.shape[2] == 1 else array
        return cls.from_pil(PIL.Image.fromarray(numpy.ascontiguousarray(plain)), format, file_name, **options)

    @classmethod
    def from_torch(cls, tensor: torch.Tensor, format: str = "png", file_name: str | None = None, **options: Any) -> Self:
        """As `from_numpy`, from a tensor on any device: (height, width, channels), uint8."""
        return cls.from_numpy(tensor.detach().cpu().numpy(), format, file_name, **options)

    def to_pil(self, mode: str = "RGB") -> PIL.Image.Image:
        """The picture, upright and in `mode`. InvalidInput when it is none, or one of too many pixels."""
        import PIL.Image
        import PIL.ImageOps

        with self.open() as file:
            try:
                picture = PIL.Image.open(file, formats=PICTURES)
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels are more than {MOST_PIXELS}")
                return PIL.ImageOps.exif_transpose(picture).convert(mode)
            except Exception as error:  # whatever a decoder says of bytes that strangers made
                reason = "it is not a picture of a known format" if isinstance(error, PIL.UnidentifiedImageError) else error
                raise self.invalid(f"Image could not be read: {reason}", type="image_load_error") from None

    async def to_pil_async(self, mode: str = "RGB") -> PIL.Image.Image:
        """As `to_pil`, without blocking the event loop; cancelling it ends the download."""
        with await self.open_async():
            return await asyncio.to_thread(self.to_pil, mode)

    def to_numpy(self, mode: str = "RGB") -> numpy.ndarray[Any, Any]:
        """The picture, upright: (height, width, channels), uint8; mode "L" has one channel, "RGBA" four."""
        import numpy

        array = numpy.array(self.to_pil(mode))
        return array if array.ndim == 3 else array[:, :, None]

    def to_torch(self, mode: str = "RGB") -> torch.Tensor:
        """As `to_numpy`, as a tensor on the CPU. Networks often want `.permute(2, 0, 1).float() / 255`."""
        import torch

        return torch.from_numpy(self.to_numpy(mode))


def _format(name: str) -> str:
    lower = name.lower()
    return {"jpg": "jpeg", "mpo": "jpeg"}.get(lower, lower)
