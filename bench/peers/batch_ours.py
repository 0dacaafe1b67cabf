"""The batched model as an app of ours. All default plugins are on."""

import msgspec
from batch_model import MOST, WAIT_MS, Model

import runner


class Input(msgspec.Struct):
    x: list[float]


class Output(msgspec.Struct):
    best: int


class Peer(runner.App):
    def setup(self):
        self.model = Model()

    @runner.endpoint("/", batch=runner.Batch(max_size=MOST, max_wait_ms=WAIT_MS))
    def predict(self, inputs: list[Input]) -> list[Output]:
        return [Output(best) for best in self.model.best([each.x for each in inputs])]
