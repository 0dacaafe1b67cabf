"""The typed endpoint in LitServe: one worker process on the CPU, its fast queue on, its documents off."""

import sys

import litserve
from pydantic import BaseModel


class Input(BaseModel):
    prompt: str
    steps: int = 20


class Peer(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request: Input):
        return request

    def predict(self, asked):
        return {"text": asked.prompt, "steps": asked.steps}

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Peer(api_path="/sync"), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning", num_api_servers=1)
