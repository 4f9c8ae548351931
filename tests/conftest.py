"""A real broker per test, and one database server for all of them, each on a free loopback port."""

import traceback
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from forebay.testing.nats_server import NatsServer
from forebay.testing.postgres_server import PostgresServer
from tests import stores

# How long an example takes says how busy the machine is; every test has a time limit of its own.
settings.register_profile("forebay", deadline=None)
settings.load_profile("forebay")


def _innermost(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _innermost(each)
    else:
        yield error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what is at the bottom of task groups: of ten in each other, pytest shows no more than their frames."""
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, BaseExceptionGroup):
        told = ["".join(traceback.format_exception(each)) for each in _innermost(call.excinfo.value)]
        report.sections.append(("innermost", "\n".join(told)))
    return report


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def postgres_server() -> PostgresServer:
    """One PostgreSQL for all tests (with xdist: of the worker); they take a database each and leave it running."""
    return stores.server()


BOTH = ("tests.integration.test_intake", "tests.unit.test_outbox")
"""Modules whose tests run on both kinds of store; `make test-postgres` runs all that use ``tests.stores``."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.endswith(BOTH):
        metafunc.parametrize("store_kind", stores.KINDS, indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def store_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of store that a module's tests run on."""
    kind = getattr(request, "param", stores.DEFAULT)
    stores.choose(kind)
    yield kind
    stores.choose(stores.DEFAULT)
