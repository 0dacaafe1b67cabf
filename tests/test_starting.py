"""What a start imports: nothing that the app does not use, or a cold start takes as long as all of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serving import serving, written

APP = """
import sys
import runner

class Small(runner.App):
    @runner.endpoint("/")
    def imported(self) -> list[str]:
        return sorted(sys.modules)
"""
UNUSED = {
    "fal", "fal_client", "h11", "httpcore", "httpx", "hypercorn", "numpy", "obstore", "PIL", "prometheus_client", "pydantic",
    "soundfile", "torch",
    "runner.plugins.fal.errors", "runner.plugins.fal.modules", "runner.plugins.fal.toolkit",
    "runner.plugins.gateway", "runner.plugins.queue.webhooks", "runner.plugins.stock", "runner.plugins.supervising",
}  # fmt: skip


@pytest.mark.skipif("http1" in os.environ.get("WITHOUT", ""), reason="hypercorn reads every connection then")
def test_a_start_imports_nothing_that_the_app_does_not_use(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        imported = set(runner.post("/").json())

    assert "runner.plugins.http1" in imported
    assert imported & UNUSED == set()
