"""Speech: when somebody speaks in a recording. A real model on a real input, small enough for a laptop.

    python runner.py examples/speech.py
    curl -F audio=@examples/data/speech.wav localhost:8000

Or as it is spoken: `python -m http.server 8001 --directory examples`, then open
http://localhost:8001/microphone.html in a browser, which sends what a microphone hears to `/listen`.

Silero VAD judges 32 ms at a time and remembers what came before, so it hears one recording at a
time, and each listening client has a copy of its own. What libsndfile reads (WAV, FLAC, OGG, MP3) is mixed to one channel and brought to 16 kHz.
Needs `pip install silero-vad soundfile`; the weights come with the package.
"""

from __future__ import annotations

import copy
import math
import warnings
from fractions import Fraction
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import msgspec
import silero_vad
import soundfile
import torch
from msgspec import Meta

import runner

RATE = 16_000  # samples per second, as the model was trained
SLOWEST, FASTEST = 4_000, 192_000
WINDOW = 512  # samples that the model judges at once
LONGEST_SECONDS = 30 * 60
BLOCK = 64 * 1024  # samples of each channel, decoded at once
ZEROS = 16  # of the sinc on each side: steep enough for speech


class Input(msgspec.Struct):
    audio: runner.Audio
    threshold: Annotated[float, Meta(gt=0, lt=1, description="how sure the model must be")] = 0.5


class Segment(msgspec.Struct):
    start: float  # seconds
    end: float


class Output(msgspec.Struct):
    segments: list[Segment]
    duration: float


class Sound(msgspec.Struct):
    """What a microphone heard since the last message, in pieces of any length."""

    samples: bytes  # 16 kHz, one channel, 16 bits each, little-endian; base64 in JSON


class Heard(msgspec.Struct):
    at: float  # seconds of sound judged so far
    speech: bool
    chance: float  # of speech in the last 32 ms that were judged


class Speech(runner.App):
    def setup(self) -> None:
        # One step of this model is too small to share: two threads took fifteen times as long.
        torch.set_num_threads(1)
        with warnings.catch_warnings():  # the package loads TorchScript, which torch 2.13 calls old
            warnings.simplefilter("ignore", DeprecationWarning)
            self.model = silero_vad.load_silero_vad()
        self.listen(torch.zeros(RATE), 0.5)  # TorchScript compiles itself in the first calls
        self.listeners: WeakKeyDictionary[runner.Request, Listener] = WeakKeyDictionary()

    @runner.endpoint("/")
    def detect(self, input: Input) -> Output:
        sound = decoded(input.audio)
        return Output(self.listen(sound, input.threshold), len(sound) / RATE)

    @runner.realtime("/listen", session_timeout=60)
    def hear(self, sound: Sound) -> Heard:
        """Tell for every piece of sound whether somebody speaks. A session is one listener."""
        session = self.current_request
        if session not in self.listeners:
            self.model.reset_states()
            self.listeners[session] = Listener(copy.deepcopy(self.model))
        return self.listeners[session].hear(sound.samples)

    def listen(self, sound: torch.Tensor, threshold: float) -> list[Segment]:
        self.model.reset_states()  # also after a request that was stopped half way
        found = silero_vad.get_speech_timestamps(sound, self.model, threshold=threshold, sampling_rate=RATE)
        return [Segment(one["start"] / RATE, one["end"] / RATE) for one in found]


class Listener:
    """The model's memory of one client, and the sound that is too short to be judged yet."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.judged = 0  # samples
        self.left = b""
        self.answer = Heard(0.0, False, 0.0)

    def hear(self, samples: bytes) -> Heard:
        samples = self.left + samples
        whole = len(samples) // (2 * WINDOW) * (2 * WINDOW)
        self.left = samples[whole:]
        for at in range(0, whole, 2 * WINDOW):
            window = torch.frombuffer(bytearray(samples[at : at + 2 * WINDOW]), dtype=torch.int16)
            chance = self.model(window.float() / 32768, RATE).item()
            self.judged += WINDOW
            # Speech that has begun ends at a lower chance, so that it does not flicker.
            speech = chance >= (0.35 if self.answer.speech else 0.5)
            self.answer = Heard(self.judged / RATE, speech, round(chance, 3))
        return self.answer


def decoded(audio: runner.Audio) -> torch.Tensor:
    """The recording as one channel at 16 kHz. InvalidInput at its field when it is none."""
    with audio.open() as file:
        try:
            with soundfile.SoundFile(file) as source:
                rate = source.samplerate
                if not SLOWEST <= rate <= FASTEST:
                    raise audio.invalid(f"Audio should have {SLOWEST} to {FASTEST} samples a second, not {rate}")
                sound = mixed(source, audio)
        except soundfile.SoundFileError as error:
            raise audio.invalid(f"Audio could not be read: {error}", type="unsupported_audio_format") from None
    if not torch.isfinite(sound).all():
        raise audio.invalid("Audio holds samples that are no numbers")
    return resampled(sound, rate)


def mixed(source: soundfile.SoundFile, audio: runner.Audio) -> torch.Tensor:
    """All of `source`, its channels averaged, in blocks: a small FLAC may hold days of silence."""
    parts, left = [torch.zeros(0)], LONGEST_SECONDS * source.samplerate
    while len(block := source.read(BLOCK, dtype="float32", always_2d=True)):
        if (left := left - len(block)) < 0:
            raise audio.invalid(f"Audio is longer than {LONGEST_SECONDS} seconds", type="audio_duration_too_long")
        parts.append(torch.from_numpy(block).mean(1))
    return torch.cat(parts)


def resampled(sound: torch.Tensor, rate: int) -> torch.Tensor:
    """`sound` at 16 kHz: each new sample is a weighed sum of the old ones around it, a sinc under a Hann window.

    Between two old samples the new ones fall on few places, `phases`; each has its own row of weights.
    """
    ratio = Fraction(rate, RATE).limit_denominator(640)  # 640 is exact for 11.025, 22.05 and 44.1 kHz
    step, phases = ratio.numerator, ratio.denominator
    if step == phases:
        return sound
    kept = min(1.0, 0.95 * phases / step)  # of the band; above it new samples would hear what is not there
    reach = math.ceil(ZEROS / kept)
    places = torch.arange(phases, dtype=torch.float64) * step / phases
    distance = torch.arange(-reach, step + reach) - places[:, None]
    window = torch.cos(distance * math.pi / (2 * reach)).square() * (distance.abs() < reach)
    weights = (kept * torch.sinc(kept * distance) * window).float()
    padded = torch.nn.functional.pad(sound, (reach, reach + step))
    rows = torch.nn.functional.conv1d(padded[None, None], weights[:, None], stride=step)[0]
    return rows.T.reshape(-1)[: round(len(sound) * phases / step)]
