"""What a cancelled run leaves of the model (cancellation: closing)."""

from __future__ import annotations

from pathlib import Path

from serving import serving, written

APP = """
import torch
import runner

class Adapting(runner.App):
    def setup(self):
        self.model = torch.nn.Linear(4, 4)

    @runner.endpoint("/")
    def run(self) -> float:
        with torch.no_grad():
            return self.model(torch.ones(4)).sum().item()

    @runner.endpoint("/load", timeout=0.2)
    def load(self, whole: bool) -> str:
        print("loading")
        with torch.no_grad():
            if whole:
                while True:
                    self.model(torch.ones(4))
            self.model.weight.mul_(2)
            while True:
                self.model(torch.ones(4))
"""


def test_a_cancelled_run_that_left_the_model_as_it_was_changes_nothing(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        first = runner.post("/").json()
        for _ in range(3):
            assert runner.post("/load?whole=true").status_code == 504

        assert runner.post("/").json() == first
        assert runner.get("/health/ready").status_code == 200


def test_a_cancelled_run_that_left_the_model_changed_has_the_process_replaced(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        late = runner.post("/load?whole=false")
        changed = runner.wait_for("cancel.model_changed")["changed"]
        replacing = runner.wait_for("server.replacing")
        code = runner.wait()

    assert late.status_code == 504
    assert changed == ["model.weight"]
    assert "left the model changed: model.weight" in replacing["reason"]
    assert code == 72
