"""A loop that no longer turns is seen from outside of Python."""

from __future__ import annotations

from pathlib import Path

from serving import serving, written

APP = """
import ctypes
import runner

class Blocking(runner.App):
    @runner.endpoint("/")
    async def run(self) -> str:
        ctypes.CDLL(None).usleep(900_000)  # the GIL is free, the loop is not
        return "done"

    @runner.endpoint("/greedy")
    async def greedy(self) -> str:
        ctypes.PyDLL(None).usleep(900_000)  # and here nothing in Python can run
        return "done"
"""


def test_stacks_are_written_while_an_async_method_blocks_and_the_log_says_how_long(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP), "--stall-seconds", "0.3") as runner:
        for number, path in enumerate(["/", "/greedy"], 1):
            assert runner.post(path).json() == "done"
            runner.wait_for("loop.stalled", times=number)
        told = "\n".join(line["text"] for line in runner.events("raw"))

    assert told.count("Timeout (0:00:00.300000)!") >= 2
    assert "in greedy" in told
    assert runner.events("loop.stalled")[0]["seconds"] > 0.3


def test_a_loop_that_turns_is_left_in_peace(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP.replace("900_000", "1000")), "--stall-seconds", "2") as runner:
        for _ in range(20):
            runner.post("/")
        runner.stop()

    assert not [line for line in runner.events("raw") if "Timeout (" in line["text"]]
