"""Every benchmark beside our peers, one after the other, as one report; `make bench` runs this.

Each part is a script of its own, which can be run alone and says how it measures. The report begins with
the aims, and whether this run reached them. `--write` puts it into docs/performance.md, between the lines that
say so. About twelve minutes; the machine should do nothing else. A part that fails is named and left out.

    python bench/report.py [--only peers,streaming] [--quick] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "performance.md"
BEGIN, END = "<!-- measured: written by bench/report.py --write -->", "<!-- measured: end -->"
PARTS = {  # title, options, options of a quick run that only shows that it works
    "peers": ("A typed endpoint", ["--rounds", "3", "--seconds", "2"], ["--rounds", "1", "--seconds", "1", "--connections", "16"]),
    "streaming": ("Streams and WebSockets", [], []),
    "files": ("Files", ["--mib", "512"], ["--mib", "64", "--turns", "1"]),
    "submits": ("The durable queue", [], []),
    "overload": ("Twice the load", ["--seconds", "8"], ["--seconds", "2"]),
    "idle": ("Idle connections", ["--connections", "5000"], ["--connections", "500", "--seconds", "1"]),
}
PART_SECONDS = 600  # a part that takes longer hangs


def run(name: str, *, quick: bool) -> tuple[str, Any]:
    """What a part prints, and what it found; a sentence and None when it fails."""
    _, options, fast = PARTS[name]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command = [sys.executable, HOUSE / "bench" / f"{name}.py", *(fast if quick else options), "--json", found]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PART_SECONDS)
            return done.stdout.strip(), json.loads(found.read_text())
        except subprocess.CalledProcessError as error:
            return f"This part failed: {(error.stderr or '').strip()[-500:]}", None
        except (subprocess.TimeoutExpired, OSError, ValueError) as error:
            return f"This part failed: {error}", None


def aims(found: dict[str, Any]) -> list[str]:
    """Each aim, what this run gave, and whether that reached it."""
    rows = ["| aim | this run | reached |", "|---|---|---|"]

    def row(aim: str, value: float | None, least: float, text: str, *, at_most: bool = False) -> None:
        if value is not None:
            reached = value <= least if at_most else value >= least
            rows.append(f"| {aim} | {text.format(value)} | {'yes' if reached else '**no**'} |")

    if peers := found.get("peers"):
        loads, starts, memory = peers["loads"], peers["starts"], peers["memory"]
        for count in (16, 64):
            for kind, other, other_kind, least in (
                ("async", "uvicorn", "async", 0.8), ("async", "mosec", "sync", 2.5), ("sync", "mosec", "sync", 2.0), ("sync", "fastapi", "sync", 10.0),
            ):  # fmt: skip
                ours, theirs = loads.get(f"{kind} {count} ours"), loads.get(f"{other_kind} {count} {other}")
                if ours and theirs:
                    cpu = theirs["cpu_us"] / ours["cpu_us"]
                    text = f"{{:.2f}} x ({ours['rate']:,.0f} to {theirs['rate']:,.0f} a second); by CPU {cpu:.2f} x"
                    row(f"{kind}, {count} connections: {least:g} x {other}", ours["rate"] / theirs["rate"], least, text)
        if "fastapi" in starts:
            row("cold start: at most 0.8 x FastAPI", starts["ours"] / starts["fastapi"], 0.8, f"{{:.2f}} x ({starts['ours']:.2f} s)", at_most=True)
            row("memory idle: at most 1.3 x FastAPI", memory["ours"] / memory["fastapi"], 1.3, f"{{:.2f}} x ({memory['ours']:.0f} MiB)", at_most=True)
    if streaming := found.get("streaming"):
        ours, theirs = streaming["ours"], streaming["theirs"]
        row("SSE, sync generator, 32 streams: 50,000 events/s", ours["/sync 32"], 50_000, "{:,.0f}")
        row("the same: 1 x FastAPI's async generator", ours["/sync 32"] / theirs["/async 32"], 1.0, "{:.2f} x")
        row("WebSocket, 16 connections: 1 x uvicorn", ours["/ws-raw"] / theirs["/ws-raw"], 1.0, f"{{:.2f}} x ({ours['/ws-raw']:,.0f}/s)")
    if submits := found.get("submits"):
        row("durable submit, process-crash safety: 5,000/s", submits["process 64"]["rate"], 5000, "{:,.0f}")
        row("the same, one caller: p50 under 2 ms", submits["process 1"]["p50_ms"], 2.0, "{:.2f} ms", at_most=True)
    if overload := found.get("overload"):
        row("twice the load: goodput 0.95 of capacity", overload["ours"]["goodput"], 0.95, "{:.2f}")
        row("the same: p99 of the served, bounded by a line of 0.5 s", overload["ours"]["p99"], 0.65, "{:.2f} s", at_most=True)
    if idle := found.get("idle"):
        row("idle connections: under 20 KiB each", idle["kib"], 20, "{:.1f} KiB", at_most=True)
        row("the same: nothing measurable a second", idle["cpu_ms"], 10, "{:.1f} ms of CPU", at_most=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Every benchmark, as one report.")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="short runs, whose numbers mean little")
    parser.add_argument("--write", action="store_true", help="put the report into docs/performance.md")
    given = parser.parse_args()
    began, texts, found = time.monotonic(), {}, {}
    for name in given.only.split(","):
        print(f"{name} ...", file=sys.stderr)
        texts[name], found[name] = run(name, quick=given.quick)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end"
    lines = [f"{datetime.now(UTC):%Y-%m-%d}, `python bench/report.py`. {machine}, {(time.monotonic() - began) / 60:.0f} minutes.", "", *aims(found)]
    for name, text in texts.items():
        plain = "|" not in text
        lines += ["", f"### {PARTS[name][0]} (`bench/{name}.py`)", "", *(["```", text, "```"] if plain else [text])]
    report = "\n".join(lines)
    print(report)
    if given.write:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        if not rest or END not in rest:
            raise SystemExit(f"{PAGE} has no line {BEGIN!r} with {END!r} below it")
        PAGE.write_text(f"{before}{BEGIN}\n\n{report}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
