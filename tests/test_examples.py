"""The examples and the README's own lines run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving import HOUSE, serving, written

SEED = '''class Input(BaseModel):
    prompt: str

class Output(BaseModel):
    text: str

class MyApp(fal.App):
    machine_type = "GPU-A100"

    def setup(self):
        self.model = load_model()

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        result = self.model(input.prompt)
        return Output(text=result)
'''


def test_the_seed_example_is_there_character_for_character() -> None:
    source = (HOUSE / "examples" / "hello.py").read_text()

    assert source.startswith("import fal\nfrom pydantic import BaseModel\n")
    assert source.endswith(SEED)


def test_the_seed_example_answers_from_any_folder(tmp_path: Path) -> None:
    with serving("hello:MyApp", "--app-dir", str(HOUSE / "examples"), cwd=tmp_path) as runner:
        response = runner.post("/", {"prompt": "world"})

    assert (response.status_code, response.content) == (200, b'{"text":"Hello, world!"}')


def test_the_app_of_the_readme_answers(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (HOUSE / "README.md").read_text(), re.DOTALL)
    app = written(tmp_path, block + "\ndef load_model(): return str.upper\n")

    with serving(f"{app}:MyApp") as runner:
        assert runner.post("/", {"prompt": "hello"}).json() == {"text": "HELLO"}


def test_make_run_hears_the_recording_within_150_milliseconds() -> None:
    done = subprocess.run([sys.executable, HOUSE / "examples" / "run.py", "--once"], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    heard = [tuple(map(float, pair)) for pair in re.findall(r"speech from +([\d.]+) s to +([\d.]+) s", done.stdout)]
    spoken = json.loads((HOUSE / "examples" / "data" / "speech.json").read_text())["segments"]
    assert len(heard) == len(spoken)
    for (start, end), truth in zip(heard, spoken, strict=True):
        assert abs(start - truth["start"]) <= 0.15
        assert abs(end - truth["end"]) <= 0.15


def test_the_language_model_streams_the_characters_that_it_also_writes_at_once() -> None:
    with serving(HOUSE / "examples" / "tokens.py") as runner:
        asked = {"prompt": "The tide ", "length": 60, "temperature": 0.2}
        events = runner.post("/stream", asked).text.removesuffix("\n\n").split("\n\n")
        whole = runner.post("/", asked).json()["text"]
        line = runner.wait_for("request.finished", path="/stream")

    tokens = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [token["at"] for token in tokens] == list(range(60))
    assert "".join(token["text"] for token in tokens) == whole
    assert any(word in whole for word in ("comes in", "goes out"))
    assert line["items"] == 60


def test_the_languages_of_many_callers_are_told_in_fewer_passes() -> None:
    asked = {"wo ist der Hafen": "de", "where is the harbour": "en", "dónde está el puerto": "es", "où est le port": "fr"}
    texts = [*asked, ""] * 4
    with serving(HOUSE / "examples" / "batching.py") as runner, runner.client() as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: client.post("/", json={"text": text}), texts))
        metrics = client.get("/metrics").text

    for text, answer in zip(texts, answers, strict=True):
        assert answer.status_code == (200 if text else 422)
        assert not text or answer.json()["language"] == asked[text]
    assert re.search(r'runner_batch_size_sum\{endpoint="/"\} 16\.0', metrics)
