"""Which backend runs: the choice, its scope, pins, the environment, and the reasons given for a no."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from rawgrad.kernels import _dispatch
from rawgrad.kernels._dispatch import (
    BACKENDS,
    Backend,
    Choice,
    Operation,
    backend,
    backends,
    current_choice,
    reset_choice,
    set_choice,
)
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels.gemm import gemm
from rawgrad.kernels.gemm import reference as gemm_reference


def isolated(function):
    """Run in a copy of the context, so that a backend chosen by a call does not stay."""
    return contextvars.copy_context().run(function)


def test_a_block_ends_and_a_call_stays():
    def scenario():
        before = current_choice()
        with backend("numpy") as entered:
            assert isinstance(entered, backend)
            assert current_choice().for_device("cpu") == "numpy"
        assert current_choice() == before
        backend("numpy")
        assert current_choice().for_device("cpu") == "numpy"

    before = current_choice()
    isolated(scenario)
    assert current_choice() == before


def test_a_block_ends_when_an_exception_leaves_it():
    before = current_choice()
    with pytest.raises(KeyError), backend("numpy", gemm="v1"):
        raise KeyError
    assert current_choice() == before


def test_the_choice_belongs_to_its_thread():
    seen = {}

    def other_thread():
        seen["at start"] = current_choice().pin_of("gemm")
        backend("numpy", gemm="theirs")
        arrived.set()
        assert leave.wait(10)

    arrived, leave = threading.Event(), threading.Event()
    with backend("numpy", gemm="ours"):
        thread = threading.Thread(target=other_thread)
        thread.start()
        assert arrived.wait(10)
        seen["meanwhile"] = current_choice().pin_of("gemm")
        leave.set()
        thread.join()
    assert seen == {"at start": None, "meanwhile": "ours"}


def test_a_recorded_choice_can_be_used_again():
    with backend("numpy", gemm="v1"):
        recorded = current_choice()
    token = set_choice(recorded)
    assert current_choice() == recorded != Choice()
    reset_choice(token)
    assert current_choice() != recorded


def test_choices_are_keys():
    first = Choice().with_backend(BACKENDS["numpy"], {"gemm": "a", "conv2d": "b"})
    second = Choice().with_backend(BACKENDS["numpy"], {"conv2d": "b"}).with_backend(BACKENDS["numpy"], {"gemm": "a"})
    assert first == second
    assert hash(first) == hash(second)
    assert first.with_backend(BACKENDS["cuda"], {}).backends == (("cpu", "numpy"), ("cuda", "cuda"))


@pytest.mark.parametrize("name", ["nunpy", "", None, 3, []])
def test_a_backend_that_does_not_exist(name):
    with pytest.raises(BackendError, match=r"backend .* does not exist; there are: numba, numpy, cuda"):
        backend(name)


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(BACKENDS, "lacking", Backend("lacking", "cpu", "reference", ("numpy", "no_such_package"), ""))
    monkeypatch.setitem(BACKENDS, "empty", Backend("empty", "cpu", "no_such_file", (), ""))
    with pytest.raises(BackendError, match=r"backend 'lacking' cannot run here: not installed: no_such_package$"):
        backend("lacking")
    with pytest.raises(BackendError, match=r"backend 'empty' cannot run here: .* no kernels for it yet"):
        backend("empty")
    reasons = backends()
    assert reasons["numpy"] is None
    assert "no_such_package" in reasons["lacking"]
    with backend("numpy"):  # the failed choices left nothing behind
        assert current_choice().for_device("cpu") == "numpy"


def test_an_operation_without_implementation():
    absent = Operation("rawgrad.kernels.no_such_operation")
    with pytest.raises(BackendError, match="backend 'numpy' does not implement no_such_operation"), backend("numpy"):
        absent.run("forward", "cpu")
    with pytest.raises(BackendError, match="no_such_operation: no backend that runs here takes arrays of device 'cpu'"):
        contextvars.Context().run(absent.run, "forward", "cpu")


def test_pins(monkeypatch):
    operation = Operation("rawgrad.kernels.gemm")  # of its own, so that nothing stays in the real one's cache
    versions = {"gemm": {"v1_first": lambda *_: "first", "v2_second": lambda *_: "second"}}
    monkeypatch.setattr(gemm_reference, "VERSIONS", versions, raising=False)
    with backend("numpy", gemm="v1_first"):
        assert operation.run("gemm", "cpu") == "first"
        assert operation.run("gemm", "cpu", version="v2_second") == "second"  # the nearer wish wins
        with backend("numpy", gemm="v2_second", conv2d="v9"):
            assert operation.run("gemm", "cpu") == "second"
        with pytest.raises(
            BackendError, match=r"gemm: backend 'numpy' has no version 'v3'; versions: v1_first, v2_sec"
        ):
            operation.run("gemm", "cpu", version="v3")


def test_a_version_that_does_not_exist():
    a = np.ones((1, 1))
    with backend("numpy"):
        with pytest.raises(
            BackendError, match="gemm: backend 'numpy' has no version 'v7'; versions: none: it has a sin"
        ):
            gemm(a, a, version="v7")
        np.testing.assert_array_equal(gemm(a, a), [[1.0]])
    with backend("numpy", gemm="v8"), pytest.raises(BackendError, match="no version 'v8'"):
        gemm(a, a)
    with pytest.raises(BackendError, match="cannot pin a version of 'gem': there is no such operation"):
        backend("numpy", gem="v1")


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


PRODUCT = "import numpy as np; from rawgrad.kernels.gemm import gemm; gemm(np.ones((2, 3)), np.ones((3, 4)))"


def test_the_environment_chooses_for_the_process():
    code = "from rawgrad.kernels._dispatch import current_choice; print(current_choice().backends)"
    result = run_python(code, RAWGRAD_BACKEND="numpy")
    assert result.stdout.strip() == "(('cpu', 'numpy'),)", result.stderr
    result = run_python(code, RAWGRAD_BACKEND="")
    assert result.stdout.strip() == "()", result.stderr
    result = run_python(PRODUCT, RAWGRAD_BACKEND="nunpy")
    assert "BackendError: backend 'nunpy' does not exist" in result.stderr


def test_debug_logs_operation_backend_version_shapes_and_time():
    quiet = run_python(PRODUCT, RAWGRAD_BACKEND="numpy", RAWGRAD_DEBUG="")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    loud = run_python(PRODUCT, RAWGRAD_BACKEND="numpy", RAWGRAD_DEBUG="1")
    assert loud.returncode == 0
    head, _, tail = loud.stderr.strip().partition(" default (2, 3) (3, 4) ")
    assert head == "gemm numpy"
    assert tail.endswith(" ms")
    assert float(tail.removesuffix(" ms")) > 0


def test_importing_the_kernels_loads_no_backend():
    code = (
        "import sys, rawgrad.kernels.gemm, rawgrad.kernels._dispatch as d; d.backends(); "
        "print([m for m in ('numba', 'cupy', 'scipy', 'rawgrad.kernels.gemm.reference') if m in sys.modules])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_operation_has_a_reference():
    folders = [f for f in _dispatch._KERNELS.iterdir() if (f / "__init__.py").is_file() and not f.name.startswith("_")]
    assert {f.name for f in folders if not BACKENDS["numpy"].implements(f.name)} == set()
    assert len(folders) >= 4
