"""A small language model that streams what it writes, character by character.

It learns the page in `data/harbour.txt` while the app starts, in seconds and on any machine, and
then goes on from whatever it is given. Whoever stops reading stops it.

    python runner.py examples/tokens.py
    curl -N localhost:8000/stream -H 'content-type: application/json' -d '{"prompt": "The tide "}'
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import nn

import runner

PAGE = Path(__file__).parent / "data" / "harbour.txt"
SEEN = 12  # characters that the model looks at
STEPS, BATCH = 300, 256


class Input(msgspec.Struct):
    prompt: str = "The tide "
    length: Annotated[int, Meta(ge=1, le=100_000)] = 200
    temperature: Annotated[float, Meta(ge=0.05, le=2)] = 0.5
    seed: int = 0


class Token(msgspec.Struct):
    text: str
    at: int  # its place in what was written, from 0


class Output(msgspec.Struct):
    text: str


class Writer(nn.Module):
    """Looks at the last few characters and says which one may come next."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 24)
        self.layers = nn.Sequential(nn.Linear(SEEN * 24, 192), nn.GELU(), nn.Linear(192, characters))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(seen).flatten(1))


class Tokens(runner.App):
    def setup(self) -> None:
        torch.set_num_threads(1)  # its steps are too small to share
        text = PAGE.read_text()
        self.characters = sorted(set(text))
        self.number = {character: number for number, character in enumerate(self.characters)}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        self.model = Writer(len(self.characters)).to(self.device)
        loss = self.learn(torch.tensor([self.number[c] for c in text], device=self.device))
        print(f"learnt {len(text)} characters, loss {loss:.2f}")

    def learn(self, page: torch.Tensor) -> float:
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3)
        windows = page.unfold(0, SEEN + 1, 1)
        for _ in range(STEPS):
            some = windows[torch.randint(len(windows), (BATCH,), device=self.device)]
            loss = nn.functional.cross_entropy(self.model(some[:, :-1]), some[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    @runner.endpoint("/stream")
    def stream(self, input: Input) -> Iterator[Token]:
        """Go on from the prompt, one character per event."""
        for at, character in enumerate(self.write(input)):
            yield Token(character, at)

    @runner.endpoint("/")
    def whole(self, input: Input) -> Output:
        """Go on from the prompt, and answer when all is written."""
        return Output("".join(self.write(input)))

    @torch.inference_mode()
    def write(self, input: Input) -> Iterator[str]:
        known = [self.number["\n"]] * SEEN + [self.number[c] for c in input.prompt if c in self.number]
        seen = torch.tensor([known[-SEEN:]], device=self.device)
        dice = torch.Generator(self.device).manual_seed(input.seed)
        for step in range(input.length):
            chances = (self.model(seen) / input.temperature).softmax(1)
            following = torch.multinomial(chances, 1, generator=dice)
            seen = torch.cat([seen[:, 1:], following], 1)
            runner.progress(step + 1, input.length)
            yield self.characters[following.item()]
