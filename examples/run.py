"""What `make run` does: serve the speech example, send it a recording, show the answer, serve on.

    python examples/run.py            until Ctrl-C, on port 8000
    python examples/run.py --once     on a free port; ends after the answer
    python examples/run.py --port 8080
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDING = HERE / "data" / "speech.wav"


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the speech example and send it a recording.")
    parser.add_argument("--once", action="store_true", help="end after the answer")
    parser.add_argument("--port", default="8000", help="port to serve on")
    options = parser.parse_args()
    read, write = os.pipe()
    command = [sys.executable, HERE.parent / "runner.py", HERE / "speech.py", "--ready-fd", str(write)]
    command += ["--port", "0" if options.once else options.port]
    server = subprocess.Popen(command, pass_fds=[write])
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            ready = pipe.readline()
        if not ready:  # it has said why
            return server.wait()
        url = json.loads(ready)["url"]
        answer = heard(url)
        print(f"\n{RECORDING.name}, {answer['duration']:.1f} s, sent to {url}/")
        for segment in answer["segments"]:
            print(f"  speech from {segment['start']:5.2f} s to {segment['end']:5.2f} s")
        if options.once:
            server.terminate()
        else:
            print(f"\nIt serves on. Try it yourself:\n\n    curl -F audio=@{os.path.relpath(RECORDING)} {url}\n\nCtrl-C ends it.")
        return server.wait()
    except KeyboardInterrupt:  # the server got it too
        return server.wait()


def heard(url: str) -> Any:
    request = urllib.request.Request(url, RECORDING.read_bytes(), {"content-type": "audio/wav"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
        return json.load(response)


if __name__ == "__main__":
    raise SystemExit(main())
