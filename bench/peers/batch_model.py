"""The model of `bench/batching.py`, the same behind every server: 4 million weights, one thread of the CPU."""

import torch
from torch import nn

WIDTH, HIDDEN = 16, 2048
MOST, WAIT_MS = 32, 5  # of a batch, for every server


class Model:
    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.layers = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    @torch.inference_mode()
    def best(self, rows: list[list[float]]) -> list[int]:
        """The number of the best class of each row, in one pass."""
        return self.layers(torch.tensor(rows)).argmax(1).tolist()
