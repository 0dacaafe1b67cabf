"""Flags beat the environment, which beats the file; a wrong setting is one clear line."""

from pathlib import Path

import pytest
from runner.schemas.settings import read_settings

import runner


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    (tmp_path / "runner.toml").write_text('host = "file"\nport = 1\nlog_format = "json"\n')
    environment = {"RUNNER_HOST": "environment", "RUNNER_PORT": "2"}

    target, settings, action = read_settings(["app:MyApp", "--port", "3"], environment, tmp_path)

    assert (target, action) == ("app:MyApp", None)
    assert (settings.port, settings.host, settings.log_format) == (3, "environment", "json")


def test_pyproject_is_read_when_there_is_no_runner_toml(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.runner]\nport = 9\n")

    assert read_settings(["app"], {}, tmp_path)[1].port == 9


def test_flags_that_repeat_become_a_list_and_so_do_commas_in_the_environment(tmp_path: Path) -> None:
    arguments = ["app", "--no-plugin", "a", "--no-plugin", "b"]

    settings = read_settings(arguments, {"RUNNER_PLUGIN": "one.py,two"}, tmp_path)[1]

    assert (settings.no_plugin, settings.plugin) == (["a", "b"], ["one.py", "two"])


@pytest.mark.parametrize(
    ("arguments", "environment", "file", "named"),
    [
        (["app", "--port", "high"], {}, "", r"--port: 'high' .* for example 8000"),
        (["app", "--port", "70000"], {}, "", r"--port: '70000'"),
        (["app"], {"RUNNER_LOG_FORMAT": "xml"}, "", r"RUNNER_LOG_FORMAT: 'xml'"),
        (["app"], {}, "prot = 1", r"prot is not a setting; known ones: .*port"),
        (["app"], {}, "port = [", r"runner\.toml"),
        (["app", "--tls-cert", "cert.pem"], {}, "", r"--tls-cert and --tls-key go together"),
        (["app", "--nonsense"], {}, "", r"--nonsense"),
        ([], {}, "", r"MODULE:CLASS"),
        (["app", "--app-id", "no-owner"], {}, "", r"--app-id"),
    ],
)
def test_a_wrong_setting_is_named(
    arguments: list[str], environment: dict[str, str], file: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "runner.toml").write_text(file)

    with pytest.raises(runner.ConfigError, match=named):
        read_settings(arguments, environment, tmp_path)


def test_an_action_is_told(tmp_path: Path) -> None:
    assert read_settings(["app", "--check"], {}, tmp_path)[2] == "check"
