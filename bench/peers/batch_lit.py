"""The batched model in LitServe: one worker process on the CPU, its fast queue on, its documents off."""

import sys

import litserve
from batch_model import MOST, WAIT_MS, Model
from pydantic import BaseModel


class Input(BaseModel):
    x: list[float]


class Peer(litserve.LitAPI):
    def setup(self, device):
        self.model = Model()

    def decode_request(self, request: Input):
        return request.x

    def batch(self, inputs):
        return inputs

    def predict(self, rows):
        return self.model.best(rows)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"best": output}


if __name__ == "__main__":
    api = Peer(max_batch_size=MOST, batch_timeout=WAIT_MS / 1000, api_path="/")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning", num_api_servers=1)
