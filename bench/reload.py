"""Edit to served, with the model still in memory: `python bench/reload.py --edits 20 --gib 1`.

An app with a model of so many GiB is served with `--reload`. Each edit writes another text into the
body of its endpoint and asks the server until it answers with it; the time is from the write to that
answer. At the end the app says how often its `setup` ran: once, or the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HOUSE = Path(__file__).parent.parent
APP = """\
import runner
import torch


class Large(runner.App):
    def setup(self) -> None:
        self.model = torch.nn.Linear({side}, {side}, bias=False)
        print("set up")

    @runner.endpoint("/")
    def edition(self) -> int:
        return {edition}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--gib", type=float, default=1, help="size of the model, in float32 weights")
    options = parser.parse_args()
    side = int((options.gib * 2**30 / 4) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        app, log = Path(folder, "app.py"), Path(folder, "log")
        app.write_text(APP.format(side=side, edition=0))
        read, write = os.pipe()
        command = [sys.executable, HOUSE / "runner.py", app, "--port", "0", "--reload", "--ready-fd", str(write)]
        with log.open("w") as out:
            server = subprocess.Popen(command, pass_fds=[write], stderr=out, cwd=folder)
        os.close(write)
        with os.fdopen(read) as pipe:
            url = json.loads(pipe.readline())["url"]
        seconds = []
        try:
            for edition in range(1, options.edits + 1):
                began = time.perf_counter()
                app.write_text(APP.format(side=side, edition=edition))
                while asked(url) != edition:
                    time.sleep(0.002)
                seconds.append(time.perf_counter() - began)
        finally:
            server.terminate()
            server.wait()
        setups = log.read_text().count("set up")
    ms = sorted(1000 * each for each in seconds)
    print(f"{options.edits} edits, a model of {options.gib:g} GiB, setup ran {setups} time(s)")
    print(f"edit to served, ms: median {statistics.median(ms):.0f}, worst {ms[-1]:.0f}")


def asked(url: str) -> int:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/", b"", {"content-type": "application/json"}), timeout=10) as answer:
        return int(json.load(answer))


if __name__ == "__main__":
    main()
