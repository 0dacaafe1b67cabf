"""What a cancelled run may have left half done in a model is found, and what is usual is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from runner.plugins.cancellation.fingerprint import Fingerprint
from torch import nn


def an_app() -> SimpleNamespace:
    return SimpleNamespace(model=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), name="not a module", parts={"head": nn.Linear(4, 2)})


def test_a_model_that_was_left_alone_has_not_changed() -> None:
    app = an_app()
    fingerprint = Fingerprint(app)

    with torch.no_grad():
        app.model.eval()
        app.model.train()
        app.parts["head"](torch.ones(1, 4))

    assert fingerprint.changed() == []


def test_weights_written_in_place_are_found_by_name() -> None:
    app = an_app()
    fingerprint = Fingerprint(app)

    with torch.no_grad():
        app.model[0].weight.add_(1)

    assert fingerprint.changed() == ["model.0.weight"]


def test_weights_hooks_and_modes_that_were_exchanged_are_found() -> None:
    app = an_app()
    fingerprint = Fingerprint(app)

    app.parts["head"].weight = nn.Parameter(torch.ones(2, 4))
    app.model[1].eval()
    app.model[0].register_forward_hook(lambda *_: None)

    assert fingerprint.changed() == ["model.0()", "model.1()", "parts.head.weight"]


def test_what_a_normal_run_changes_is_no_evidence() -> None:
    app = an_app()
    fingerprint = Fingerprint(app)
    app.model(torch.ones(3, 4))  # a BatchNorm counts its batches
    fingerprint.learn()

    app.model(torch.ones(3, 4))

    assert fingerprint.changed() == []


def test_an_app_whose_dicts_grow_meanwhile_is_looked_at_all_the_same() -> None:
    app = an_app()

    class Growing(nn.Linear):
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:  # as another request may, at this moment
            app.parts[f"more {len(app.parts)}"] = app.__dict__[f"more_{len(app.parts)}"] = 1
            return super().named_modules(*args, **kwargs)

    app.parts["growing"] = Growing(2, 2)
    app.parts["last"] = None
    fingerprint = Fingerprint(app)

    assert fingerprint.changed() == []
