"""The frame of all tests: backends as a parameter, `--require-gpu`, hypothesis' profile.

A kernel test asks for the fixture ``backend`` and runs once for every backend that implements the
operation, so a new backend of an operation needs no new test.  The operation is the one in the
file's name (``test_gemm.py`` tests ``gemm``) unless a marker says otherwise::

    from _tolerance import assert_accurate          # tests/kernels is on the path of all tests
    from _layouts import LAYOUTS, untouched

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_agrees_with_the_definition(backend, layout):
        x = backend.put(host_array, layout)         # on the backend's device, with odd strides
        with untouched(x):                          # fails if the kernel writes into its input
            y = softmax.softmax_forward(x, 1)       # runs on `backend`, which is active in the test
        assert_accurate(backend.get(y), definition, host_array)

    @pytest.mark.operation("sgd")                   # for a file that tests several operations
    def test_sgd_momentum(backend): ...

    @pytest.mark.backends("emulated", "cuda")       # for what is above the kernels, on device "cuda"
    def test_a_model_moves(backend): ...

A backend that cannot run here is a visible skip with its reason; ``--require-gpu`` turns that into a
failure for the backends that need a GPU, ``cuda`` and ``numba_cuda``.  Their tests carry the mark
``gpu``, so that ``-m gpu`` selects them; ``emulated`` runs the same kernels anywhere, and ``numba_cuda``
those that it has in a process of its own, which ``test_twins.py`` starts.

What computes for minutes outside of this process's Python (compilers, Numba's simulator) begins when the tests
begin, and uses the cores that they leave.  Their module defines ``begin_ahead(items, pool)``, which is given those of
its tests that were selected and where to submit work to; its tests come last, and wait for their results.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import numpy as np
import pytest

from rawgrad.kernels._cuda.simulator import simulated
from rawgrad.kernels._cuda.table import cores
from rawgrad.kernels._devices import Device, device_named
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import DeviceError
from rawgrad.kernels._gpu import synchronize

# `python -m pytest` puts the checkout on sys.path, where our cuda.py would hide NVIDIA's package `cuda` from CuPy.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).parents[1].resolve()]
sys.path.insert(0, str(Path(__file__).parent / "kernels"))
pytest.register_assert_rewrite("_planted")

# The same examples in every run; `--hypothesis-profile=thorough` searches for new ones.  Fixtures are
# not reset between examples: ours hold no state.
CHECKS = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "rawgrad", deadline=None, max_examples=30, derandomize=True, database=None, suppress_health_check=CHECKS
)
hypothesis.settings.register_profile(
    "thorough", deadline=None, max_examples=500, print_blob=True, database=None, suppress_health_check=CHECKS
)
hypothesis.settings.register_profile(  # where an example takes long: Numba's simulator
    "few", deadline=None, max_examples=5, derandomize=True, database=None, suppress_health_check=CHECKS
)
hypothesis.settings.load_profile("rawgrad")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu", action="store_true", help="a GPU backend that cannot run is a failure, not a skip"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "operation(name): the kernel operation whose backends run this test")
    config.addinivalue_line("markers", "backends(*names): the backends that run this test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        named = metafunc.definition.get_closest_marker("backends")
        if named:
            names = list(named.args)
        else:
            marker = metafunc.definition.get_closest_marker("operation")
            operation = marker.args[0] if marker else metafunc.module.__name__.rpartition("test_")[2]
            names = [name for name, known in BACKENDS.items() if known.implements(operation)]
            assert names, f"{metafunc.definition.nodeid}: no backend implements an operation called {operation!r}"
        parameters = [pytest.param(name, marks=pytest.mark.gpu if needs_gpu(name) else ()) for name in names]
        metafunc.parametrize("backend", parameters, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop the versions of kernels that a backend does not have; tests that wait for work begun ahead come last."""

    def exists(item: pytest.Item) -> bool:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        version = given.get("version")
        return not hasattr(version, "belongs_to") or version.belongs_to(given["backend"])

    dropped = [item for item in items if not exists(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if exists(item)]
    items.sort(key=lambda item: hasattr(item.getparent(pytest.Module).obj, "begin_ahead"))


@pytest.fixture(scope="session", autouse=True)
def ahead(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begins what modules want to have begun ahead."""
    modules: dict[Any, list[pytest.Item]] = {}
    for item in request.session.items:
        module = item.getparent(pytest.Module).obj
        if hasattr(module, "begin_ahead"):
            modules.setdefault(module, []).append(item)
    with ThreadPoolExecutor(max(1, cores() - 1)) as pool:
        for module, items in modules.items():
            module.begin_ahead(items, pool)
        yield
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT and SIGTERM as a program in a terminal has them: one that runs in the background ignores Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def needs_gpu(name: str) -> bool:
    """Whether the backend ``name`` runs on an NVIDIA GPU only."""
    anywhere = name == "emulated" or (name == "numba_cuda" and simulated())
    return name in BACKENDS and BACKENDS[name].device == "cuda" and not anywhere


@dataclass(frozen=True)
class BackendUnderTest:
    """The active backend of a test, and the way of host arrays to its device and back."""

    name: str
    device: Device

    def put(self, array: Any, layout: str = "C") -> Any:
        """``array``'s values on the device, in one of the ``_layouts.LAYOUTS``."""
        from _layouts import LAYOUTS

        return LAYOUTS[layout](self.device.from_host(np.asarray(array)))

    def synchronize(self) -> None:
        """Wait for the device, which may have an error to report; the host has nothing to wait for."""
        if self.device.name == "cuda":
            synchronize()

    def get(self, array: Any) -> np.ndarray:
        """The host copy of a result, which must live on the backend's device."""
        assert type(array) is self.device.array_type, f"expected a result on {self.device.name!r}, got {type(array)}"
        return self.device.to_host(array)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[BackendUnderTest]:
    """The backend of this run of the test, active while the test runs."""
    known = BACKENDS[request.param]
    if problem := known.problem():
        cannot_run(request, f"backend {known.name!r} cannot run here: {problem}")
    with use_backend(known.name):  # of the devices called "cuda" the active backend names one
        try:
            device = device_named(known.device)
        except DeviceError as error:
            cannot_run(request, f"backend {known.name!r} cannot run here: {error}")
        version = request.node.callspec.params.get("version") if hasattr(request.node, "callspec") else None
        if known.module == "cuda" and hasattr(version, "runs_here") and not version.runs_here():
            pytest.skip(f"version {version} is not for this GPU")
        yield BackendUnderTest(known.name, device)


def cannot_run(request: pytest.FixtureRequest, message: str) -> NoReturn:
    """Skip, visibly; a backend that needs a GPU fails instead under ``--require-gpu``."""
    if needs_gpu(request.param) and request.config.getoption("--require-gpu"):
        pytest.fail(message)
    pytest.skip(message)
