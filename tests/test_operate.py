"""What docs/operate.md promises an operator: every setting, every exit code, manifests whose paths, ports and names exist."""

from __future__ import annotations

import re
from typing import Any, get_type_hints

import pytest
import yaml
from runner.schemas import exits
from runner.schemas.health import MAY_BECOME
from runner.schemas.settings import Settings
from serving import HOUSE

import runner

PAGE = (HOUSE / "docs" / "operate.md").read_text()
DOCKERFILE = (HOUSE / "Dockerfile").read_text()


class Plain(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return "served"


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def default_shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and value >= 2**20:
        return f"{value // 2**30} GiB" if value % 2**30 == 0 else f"{value // 2**20} MiB"
    return f"{value:g}" if isinstance(value, float) else "" if value == [] else str(value)


def test_every_setting_is_listed_with_its_default_as_help_describes_it() -> None:
    rows = [
        f"| `--{name.replace('_', '-')}` | {default_shown(getattr(Settings(), name))} | {hint.__metadata__[0].description} |".replace("|  |", "| |")
        for name, hint in get_type_hints(Settings, include_extras=True).items()
    ]
    listed = [line.replace("|  |", "| |") for line in section("Settings").splitlines() if line.startswith("| `--")]

    assert set(rows) - set(listed) == set(), "docs/operate.md lacks these lines"
    assert set(listed) - set(rows) == set(), "docs/operate.md has lines of settings that are not there, or not so"


def test_every_exit_code_is_listed() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper()}

    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}


def manifests() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def kind(name: str) -> dict[str, Any]:
    (found,) = [m for m in manifests() if m.get("kind") == name]
    return found


@pytest.fixture(scope="module")
def container() -> dict[str, Any]:
    (only,) = kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.fixture(scope="module")
def image_port() -> int:
    (port,) = re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)
    assert f"RUNNER_PORT={port}" in DOCKERFILE
    return int(port)


def test_the_probes_ask_for_paths_and_the_port_that_are_there(container: dict[str, Any], image_port: int) -> None:
    routes, ports = runner.asgi(Plain).routes, {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}

    for probe in probes.values():
        assert "GET" in routes.known(probe["path"])
        assert ports[probe["port"]] == image_port
    assert probes["startup"]["path"] == probes["readiness"]["path"] == "/health/ready"
    assert probes["liveness"]["path"] == "/health/live"
    assert "lifecycle" not in container, "no preStop"
    listed = set(re.findall(r"^\| `(/health\S*)`", section("Probes"), re.MULTILINE))
    assert listed == {"/health", "/health/live", "/health/ready"}


def test_prometheus_is_pointed_at_the_metrics(image_port: int) -> None:
    told = kind("StatefulSet")["spec"]["template"]["metadata"]["annotations"]

    assert int(told["prometheus.io/port"]) == image_port
    assert "GET" in runner.asgi(Plain).routes.known(told["prometheus.io/path"])


def test_names_of_settings_in_the_manifests_are_real_and_their_volumes_hang_together(container: dict[str, Any]) -> None:
    compose = next(m for m in manifests() if "services" in m)["services"]["model"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]} | compose["environment"]
    volumes = {claim["metadata"]["name"] for claim in kind("StatefulSet")["spec"]["volumeClaimTemplates"]}

    for name in variables:
        assert name.startswith("OTEL_") or name.removeprefix("RUNNER_").lower() in Settings.__struct_fields__
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    assert variables["RUNNER_DATA_DIR"] in mounts.values()


def test_the_graces_are_longer_than_the_apps_own_and_labels_and_ports_match(container: dict[str, Any], image_port: int) -> None:
    pod, service = kind("StatefulSet")["spec"], kind("Service")["spec"]
    compose = next(m for m in manifests() if "services" in m)["services"]["model"]
    grace = runner.asgi(Plain).app.options.termination_grace_period_seconds

    assert pod["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    assert int(compose["stop_grace_period"].removesuffix("s")) > grace
    assert all(int(seconds) > grace for seconds in re.findall(r"--stop-timeout (\d+)", PAGE))
    assert pod["selector"]["matchLabels"] == pod["template"]["metadata"]["labels"] == service["selector"]
    assert service["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    assert [published.rpartition(":")[2] for published in compose["ports"]] == [str(image_port)]
    owner = int(re.findall(r"useradd --uid (\d+)", DOCKERFILE)[0])
    assert pod["template"]["spec"]["securityContext"]["fsGroup"] == owner


def test_health_is_drawn_as_the_table_has_it() -> None:
    drawing = (HOUSE / "docs" / "architecture.md").read_text().partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)", drawing, re.MULTILINE))

    assert drawn == {(str(here), str(there)) for here, next_ones in MAY_BECOME.items() for there in next_ones}
