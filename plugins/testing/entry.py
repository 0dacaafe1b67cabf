"""The pytest plugin that is installed with the package, as the module `onerunner_pytest`.

Every pytest of an environment with runner in it loads this file, so it imports neither runner nor
torch: what it is asked for brings them. It is a module beside the package for the same reason:
importing anything in `runner` imports all of it.

    app_client      an AppClient of the app that the marker `runner_app` or the ini option of that name says
    runner_server   the same app in a process of its own, on a free port
    @pytest.mark.gpu    skipped where there is no CUDA device
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from runner.testing import AppClient

BEFORE = pytest.StashKey[int]()
NAME_IT = """name the app: in pyproject.toml

    [tool.pytest.ini_options]
    runner_app = "app:MyApp"

or at the test (or as pytestmark of the module): @pytest.mark.runner_app("app:MyApp"), or app=MyApp for a class"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("runner_app", "the app under test, as on the command line of runner: app:MyApp", default="")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    config.addinivalue_line(
        "markers",
        "runner_app('app:MyApp', *, fresh=False, **options), or app=MyApp for a class: the app of app_client and runner_server; "
        "fresh=True for one of this test alone; the options are those of runner.testing.AppClient",
    )
    if config.getini("runner_app"):
        import runner.testing  # noqa: F401 # before any test is imported, so that apps may import fal


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEFORE] = _journal().count if _in_use() else 0
    if item.get_closest_marker("gpu") is not None and _is_ours(item.config) and (reason := _no_gpu()):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what apps under test logged during a test that failed."""
    report = yield
    if report.failed and _in_use() and (lines := _journal().since(item.stash.get(BEFORE, 0))):
        report.sections.append(("Captured runner log", "\n".join(lines)))
    return report


def _in_use() -> bool:
    return "runner.plugins.testing.recording" in sys.modules


def _journal() -> Any:
    return sys.modules["runner.plugins.testing.recording"].journal


def _is_ours(config: pytest.Config) -> bool:
    """Whether this is a project that tests apps: others may mean something else by `gpu`."""
    return bool(config.getini("runner_app")) or _in_use()


def _no_gpu() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return "needs a CUDA device, and torch is not installed"
    return "" if torch.cuda.is_available() else f"needs a CUDA device, and torch {torch.__version__} finds none"


class Pool:
    """The apps that tests share: one of each kind, set up when first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._clients: dict[str, AppClient[Any]] = {}

    def client(self, request: pytest.FixtureRequest, *, serve: bool) -> AppClient[Any]:
        marker = request.node.get_closest_marker("runner_app")
        options = dict(marker.kwargs) if marker is not None else {}
        named = marker.args[0] if marker is not None and marker.args else options.pop("app", None) or request.config.getini("runner_app")
        if not named:
            pytest.fail(f"{request.fixturename} does not know which app it is of; {NAME_IT}", pytrace=False)
        from runner.plugins.testing.targets import resolve
        from runner.testing import AppClient

        app, fresh = resolve(named, request.config.rootpath), options.pop("fresh", False)
        client: AppClient[Any] = AppClient(app, **{**options, **({"serve": True} if serve else {})})
        if fresh:
            request.addfinalizer(client.__enter__().close)
            return client
        key = repr((app, serve, sorted(options.items())))
        if key not in self._clients:
            self._clients[key] = self._stack.enter_context(client)
        return self._clients[key]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def _runner_pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def app_client(request: pytest.FixtureRequest, _runner_pool: Pool) -> AppClient[Any]:
    """A client of the app in this process, set up once for all tests that ask for it with the same options."""
    return _runner_pool.client(request, serve=False)


@pytest.fixture
def runner_server(request: pytest.FixtureRequest, _runner_pool: Pool) -> AppClient[Any]:
    """A client of the app as the command line serves it: another process, on a free port, at `runner_server.url`."""
    return _runner_pool.client(request, serve=True)
