"""Work of 20 ms that only one request can have at a time, in LitServe: one worker."""

import sys
import time

import litserve


class Slow(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request

    def predict(self, asked):
        time.sleep(0.02)
        return "done"

    def encode_response(self, output):
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(Slow(api_path="/sync"), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning", num_api_servers=1)
