"""What connections cost that stay open and say nothing: memory for each, and CPU for all of them together.

Each has sent one request and keeps its connection, as pooled clients do. Memory is PSS, of the whole
process, after by before; the kernel's own buffers are not in it. CPU is what the process used
in the seconds after, with the same process and no connections as the line before.

    python bench/idle.py [--connections 5000] [--seconds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import time
from pathlib import Path

from peers import BODY, COMMANDS, Server, started

HEAD = b"POST /async HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)


def opened(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(HEAD + BODY)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    return connection


def busy(server: Server, seconds: float) -> float:
    """Milliseconds of CPU a second."""
    before = server.cpu_seconds()
    time.sleep(seconds)
    return (server.cpu_seconds() - before) / seconds * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="What idle connections cost.")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the server inherits it
    if most < given.connections + 200:
        sys.exit(f"this shell may open {most} files; ulimit -n {given.connections + 200}, or --connections {most - 200}")
    with started("ours", COMMANDS["ours"]) as server:
        server.wait()
        for connection in [opened(server.port) for _ in range(100)]:  # warm
            connection.close()
        alone, before = busy(server, given.seconds), server.pss_mib()
        connections = [opened(server.port) for _ in range(given.connections)]
        together, after = busy(server, given.seconds), server.pss_mib()
        for connection in connections:
            connection.close()
    each = (after - before) * 1024 / given.connections
    print("| idle connections | PSS each, KiB | CPU ms a second |\n|---|---|---|")
    print(f"| 0 | | {alone:.1f} |\n| {given.connections:,} | {each:.1f} | {together:.1f} |")
    if given.json:
        given.json.write_text(json.dumps({"kib": each, "cpu_ms": together, "alone_ms": alone}))


if __name__ == "__main__":
    main()
