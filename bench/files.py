"""What a large file costs on its way in and out: throughput and memory, beside Starlette and FastAPI.

Each server is a process of its own on loopback: this runner on hypercorn, the others on uvicorn
with httptools and uvloop. The client is this process, over plain sockets. Uploads are written to
disk by all; ours are also hashed and kept under a URL, FastAPI's are dropped when its endpoint
returns. The memory is the greatest growth of the process's own pages (RssAnon) while one file
passes. Turns alternate, the best of each is shown. Does not show TLS, slow clients or a cold disk.

    python bench/files.py [--mib 2048] [--turns 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import install

HOUSE = Path(__file__).parent.parent
MiB = 1024 * 1024
BLOCK = bytes(range(256)) * 4096  # 1 MiB, sent over and over
FENCE = "fence-of-the-form"
HEAD = f'--{FENCE}\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\nContent-Type: application/x-big\r\n\r\n'
TAIL = f"\r\n--{FENCE}--\r\n"

APP = """
import runner

class Bench(runner.App):
    @runner.endpoint("/")
    def nothing(self) -> None: ...
"""

PEERS = """
import sys
import uvicorn
from fastapi import FastAPI, UploadFile
from starlette.responses import FileResponse

app = FastAPI()

@app.get("/file")
async def file():
    return FileResponse(sys.argv[2])

@app.post("/files")
async def take(file: UploadFile) -> dict:
    return {"size": file.size}

config = uvicorn.Config(app, port=int(sys.argv[1]), log_level="warning", http="httptools", loop="uvloop")
uvicorn.Server(config).run()
"""


class Server:
    """One server under test."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024

    def ask(self, head: str, body: Iterator[bytes] | None = None, *, keep: bool = False) -> tuple[bytes, int]:
        """Send one request; return the answer's beginning, or all of it with `keep`, and the size of its body."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{head}Host: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode())
            for piece in body or ():
                connection.sendall(piece)
            first, size, buffer = b"", 0, memoryview(bytearray(MiB))
            while got := connection.recv_into(buffer):
                if keep or b"\r\n\r\n" not in first:
                    first += buffer[:got]
                size += got
        return first, size - first.index(b"\r\n\r\n") - 4


@contextmanager
def started(command: list[Any], port: int, cwd: Path) -> Iterator[Server]:
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command} did not start") from None
                time.sleep(0.05)
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def measured(server: Server, work: Callable[[], int], size: int) -> tuple[float, float]:
    """MiB per second, and the greatest growth in MiB, of moving `size` bytes."""
    before = most = server.memory()
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, server.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    moved = work()
    seconds = time.perf_counter() - began
    over.set()
    watcher.join()
    if moved != size:
        raise SystemExit(f"{moved} bytes arrived instead of {size}")
    return size / MiB / seconds, (most - before) / MiB


def upload_form(server: Server, mib: int) -> int:
    length = len(HEAD) + mib * MiB + len(TAIL)
    head = f"POST /files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary={FENCE}\r\nContent-Length: {length}\r\n"

    def body() -> Iterator[bytes]:
        yield HEAD.encode()
        for _ in range(mib):
            yield BLOCK
        yield TAIL.encode()

    answer, _ = server.ask(head, body(), keep=True)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    return int(told.get("file_size", told.get("size")))


def upload_raw(server: Server, mib: int) -> tuple[int, str]:
    head = f"POST /files HTTP/1.1\r\nContent-Type: application/x-big\r\nContent-Length: {mib * MiB}\r\n"
    answer, _ = server.ask(head, (BLOCK for _ in range(mib)), keep=True)
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    return int(told["file_size"]), str(told["url"])


def download(server: Server, path: str) -> int:
    return server.ask(f"GET {path} HTTP/1.1\r\n")[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Large files in and out.")
    parser.add_argument("--mib", type=int, default=2048, help="size of the file")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    mib, size = options.mib, options.mib * MiB
    folder = Path(tempfile.mkdtemp(prefix="bench-files-", dir=HOUSE))
    best: dict[str, tuple[float, float]] = {}

    def turn(name: str, server: Server, work: Callable[[], int]) -> None:
        os.sync()  # what the one before wrote is not this one's debt
        speed, growth = measured(server, work, size)
        known = best.get(name, (0.0, 0.0))
        best[name] = max(known[0], speed), max(known[1], growth)

    try:
        big = folder / "big.bin"
        with big.open("wb") as file:
            for _ in range(mib):
                file.write(BLOCK)
        (folder / "app.py").write_text(APP)
        (folder / "starlette_files.py").write_text(PEERS)
        ours, theirs = free_port(), free_port()
        run = [sys.executable, HOUSE / "runner.py", "app.py", "--port", ours, "--data-dir", folder / "data", "--file-seconds", "3600"]
        with started(run, ours, folder) as runner, started([install("fastapi") / "python", "starlette_files.py", theirs, big], theirs, folder) as peers:
            _, url = upload_raw(runner, 1)
            path = url.removeprefix(f"http://127.0.0.1:{ours}")
            download(runner, path), download(peers, "/file"), upload_form(runner, 1), upload_form(peers, 1)
            for _ in range(options.turns):
                turn("upload, form, FastAPI UploadFile", peers, lambda: upload_form(peers, mib))
                turn("upload, form, runner", runner, lambda: upload_form(runner, mib))

                def raw() -> int:
                    nonlocal url
                    moved, url = upload_raw(runner, mib)
                    return moved

                turn("upload, raw, runner", runner, raw)
                turn("download, Starlette FileResponse", peers, lambda: download(peers, "/file"))
                turn("download, runner", runner, lambda: download(runner, url.removeprefix(f"http://127.0.0.1:{ours}")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{mib} MiB, best of {options.turns}; Python {platform.python_version()}, {platform.machine()}")
    print(f"{'':36}{'MiB/s':>8}{'memory, MiB':>13}")
    for name, (speed, growth) in sorted(best.items()):
        print(f"{name:36}{speed:8.0f}{growth:13.1f}")
    if options.json:
        options.json.write_text(json.dumps(best))


if __name__ == "__main__":
    main()
