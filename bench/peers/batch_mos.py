"""The batched model in Mosec: its server in Rust, one worker process, JSON by msgspec."""

import msgspec
from batch_model import MOST, WAIT_MS, Model
from mosec import Server, Worker


class Input(msgspec.Struct):
    x: list[float]


class Output(msgspec.Struct):
    best: int


decode = msgspec.json.Decoder(Input).decode
encode = msgspec.json.Encoder().encode


class Peer(Worker):
    def __init__(self):
        super().__init__()
        self.model = Model()

    def deserialize(self, data):
        return decode(data)

    def serialize(self, data):
        return encode(data)

    def forward(self, data):
        return [Output(best) for best in self.model.best([each.x for each in data])]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Peer, num=1, max_batch_size=MOST, max_wait_time=WAIT_MS)
    server.run()
