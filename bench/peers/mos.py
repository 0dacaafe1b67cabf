"""The typed endpoint in Mosec: its server in Rust, one worker process, JSON by msgspec."""

import msgspec
from mosec import Server, Worker


class Input(msgspec.Struct):
    prompt: str
    steps: int = 20


class Output(msgspec.Struct):
    text: str
    steps: int


decode = msgspec.json.Decoder(Input).decode
encode = msgspec.json.Encoder().encode


class Peer(Worker):
    def deserialize(self, data):
        return decode(data)

    def serialize(self, data):
        return encode(data)

    def forward(self, data):
        return Output(data.prompt, data.steps)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Peer, num=1)
    server.run()
