"""A small model that tells languages apart, asked by many at once: what comes together is one pass.

It learns the sentences below while the app starts. Callers send one text each; the method gets a
list of them, and a bad one fails alone.

    python runner.py examples/batching.py
    for n in $(seq 20); do curl -s localhost:8000 -H 'content-type: application/json' -d '{"text": "wo ist der Hafen"}' & done; wait
"""

import zlib
from typing import Annotated

import msgspec
import torch
from torch import nn

import runner

SENTENCES = {
    "de": ["wo ist der Bahnhof", "ich möchte ein Glas Wasser", "das Schiff kommt heute nicht mehr", "wir haben das schon gesehen", "die Kinder spielen im Garten", "er liest jeden Abend ein Buch"],
    "en": ["where is the station", "I would like a glass of water", "the ship is not coming today", "we have seen this before", "the children play in the garden", "he reads a book every evening"],
    "es": ["dónde está la estación", "quisiera un vaso de agua", "el barco ya no llega hoy", "ya lo hemos visto antes", "los niños juegan en el jardín", "él lee un libro cada noche"],
    "fr": ["où est la gare", "je voudrais un verre d'eau", "le bateau n'arrive plus aujourd'hui", "nous l'avons déjà vu", "les enfants jouent dans le jardin", "il lit un livre chaque soir"],
}  # fmt: skip
BUCKETS, STEPS = 4096, 60


class Input(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class Output(msgspec.Struct):
    language: str
    chance: float
    together: int  # how many texts were read in the same pass


def pieces(text: str) -> list[int]:
    """The letters of `text`, three at a time, as numbers."""
    text = f"  {text.lower()} "
    return [zlib.crc32(text[at : at + 3].encode()) % BUCKETS for at in range(len(text) - 2)]


class Reader(nn.Module):
    """Takes the pieces of many texts, all in one row, and says of each text how well it fits each language."""

    def __init__(self, languages: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(BUCKETS, 64, mode="mean")
        self.layers = nn.Sequential(nn.GELU(), nn.Linear(64, languages))

    def forward(self, row: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        return self.layers(self.bag(row, starts))


class Languages(runner.App):
    def setup(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)  # its steps are too small to share
        self.names = sorted(SENTENCES)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Reader(len(self.names)).to(self.device)
        texts = [text for name in self.names for text in SENTENCES[name]]
        truth = torch.tensor([at for at, name in enumerate(self.names) for _ in SENTENCES[name]], device=self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-2)
        for _ in range(STEPS):
            loss = nn.functional.cross_entropy(self.scores(texts), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def scores(self, texts: list[str]) -> torch.Tensor:
        """One pass over all of them, however long each is: (texts, languages)."""
        read = [pieces(text) for text in texts]
        row = torch.tensor([number for each in read for number in each], device=self.device)
        starts = torch.tensor([0, *(len(each) for each in read[:-1])], device=self.device).cumsum(0)
        return self.model(row, starts)

    @runner.endpoint("/", batch=runner.Batch(max_size=32, max_wait_ms=5))
    def tell(self, inputs: list[Input]) -> list[Output | runner.HTTPError]:
        """Which language a text is in."""
        with torch.inference_mode():
            chances, found = self.scores([each.text for each in inputs]).softmax(1).max(1)
        return [
            Output(self.names[number], round(chance, 3), len(inputs)) if chance > 0.5 else runner.HTTPError(422, "that may be any language")
            for chance, number in zip(chances.tolist(), found.tolist(), strict=True)
        ]
