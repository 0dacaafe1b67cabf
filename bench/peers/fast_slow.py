"""Work of 20 ms that only one request can have at a time, in FastAPI: a lock around it, as its users write it."""

import threading
import time

from fastapi import FastAPI

app = FastAPI()
gpu = threading.Lock()


@app.post("/sync")
def sync() -> str:
    with gpu:
        time.sleep(0.02)
    return "done"
