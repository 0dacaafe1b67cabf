"""Sound: an Audio to and from waveforms, through libsndfile.

A waveform is channels x samples, float32 between -1 and 1, as torchaudio has it, and comes with its
sample rate in Hz. soundfile is imported when it is first needed (`pip install soundfile`). WAV,
FLAC, OGG and MP3 are read; what cannot be read is an InvalidInput at its field.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Self

from ...schemas.files import File

if TYPE_CHECKING:
    import numpy
    import torch

MOST_SAMPLES = 256 * 1024 * 1024  # of all channels, 1 GiB as float32: 46 minutes of stereo at 48 kHz
BLOCK = 64 * 1024  # samples of each channel, decoded at once
TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}


class Audio(File):
    """A File that is sound."""

    ui = "audio"

    @classmethod
    def from_numpy(
        cls, waveform: numpy.ndarray[Any, Any], sample_rate: int, format: str = "wav", file_name: str | None = None, **options: Any
    ) -> Self:
        """Encode and store a waveform: (channels, samples) or (samples,), float32, at `sample_rate` Hz.

        `format` is wav (16 bits), flac, ogg or mp3. What lies outside -1..1 is clipped. Raises
        ValueError for other shapes and types. The rest is as for `File.from_bytes`.
        """
        import soundfile  # type: ignore[import-untyped]

        if format not in TYPES:
            raise ValueError(f"{format!r} is no format for audio here; give one of {', '.join(TYPES)}")
        if waveform.ndim not in (1, 2) or waveform.dtype.kind != "f":
            raise ValueError(
                f"a waveform of shape {waveform.shape} and type {waveform.dtype} cannot be encoded; give (channels, samples) of float32"
            )
        held = io.BytesIO()
        soundfile.write(held, waveform.T.clip(-1, 1), sample_rate, format=format.upper())
        return cls.from_bytes(held.getvalue(), TYPES[format], file_name, **options)

    @classmethod
    def from_torch(
        cls, waveform: torch.Tensor, sample_rate: int, format: str = "wav", file_name: str | None = None, **options: Any
    ) -> Self:
        """As `from_numpy`, from a tensor on any device and of any floating type."""
        return cls.from_numpy(waveform.detach().float().cpu().numpy(), sample_rate, format, file_name, **options)

    def to_numpy(self) -> tuple[numpy.ndarray[Any, Any], int]:
        """The waveform, (channels, samples) of float32, and its sample rate in Hz."""
        import numpy
        import soundfile

        with self.open() as file:
            try:
                with soundfile.SoundFile(file) as source:
                    blocks, left = [], MOST_SAMPLES // source.channels
                    # Not what its head says but what it holds is counted: a small FLAC may hold days.
                    while len(block := source.read(BLOCK, dtype="float32", always_2d=True)):
                        if (left := left - len(block)) < 0:
                            raise self.invalid(f"Audio holds more than {MOST_SAMPLES} samples", type="audio_duration_too_long")
                        blocks.append(block)
                    empty = numpy.zeros((0, source.channels), numpy.float32)
                    return numpy.ascontiguousarray(numpy.concatenate([empty, *blocks]).T), int(source.samplerate)
            except soundfile.SoundFileError as error:
                raise self.invalid(f"Audio could not be read: {error}", type="unsupported_audio_format") from None

    def to_torch(self) -> tuple[torch.Tensor, int]:
        """As `to_numpy`, with the waveform as a tensor on the CPU."""
        import torch

        waveform, sample_rate = self.to_numpy()
        return torch.from_numpy(waveform), sample_rate

    async def to_torch_async(self) -> tuple[torch.Tensor, int]:
        """As `to_torch`, without blocking the event loop; cancelling it ends the download."""
        with await self.open_async():
            return await asyncio.to_thread(self.to_torch)
