"""Work of 20 ms that only one request can have at a time, as on one GPU."""

import time

import runner


class Slow(runner.App):
    @runner.endpoint("/sync")
    def sync(self) -> str:
        time.sleep(0.02)
        return "done"
