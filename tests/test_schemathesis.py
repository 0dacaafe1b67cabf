"""What the document of each example promises is what its endpoints answer, tried by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serving import HOUSE, serving

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance",
]  # fmt: skip


@pytest.mark.parametrize("example", ["hello", "portrait", "speech", "tokens"])
def test_no_answer_of_an_example_is_an_error_of_the_server_or_breaks_its_schema(example: str, tmp_path: Path) -> None:
    with serving(f"{HOUSE}/examples/{example}.py") as runner:
        document, checks = runner.get("/openapi.json").json(), [*CHECKS, "negative_data_rejection"]
        for path in [path for path, item in document["paths"].items() if "x-fal-protocol" in item]:
            del document["paths"][path]  # a socket: its POST is there for fal's clients to read, not to call
        if example == "tokens":  # the longest text of all takes half a minute
            document["components"]["schemas"]["Input"]["properties"]["length"]["maximum"] = 50
            checks = CHECKS
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        command = [Path(sys.executable).with_name("schemathesis"), "run", "openapi.json", "--url", runner.url]
        command += ["--checks", ",".join(checks), "--max-examples", "15", "--seed", "1", "--generation-database", "none"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout
