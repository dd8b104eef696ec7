"""The Numba twins in Numba's simulator, in processes of their own: Numba decides when it is imported.

``test_the_kernels_own_tests`` starts pytest with ``NUMBA_ENABLE_CUDASIM=1`` on the tests of one operation, with the
backend ``numba_cuda``: the same bodies that every backend passes.  A simulated thread is a Python thread, and a block
takes milliseconds to start, so :data:`SUITES` says which tests run, and hypothesis draws few examples (its profile
``few``).  What they leave out are long loops over the same code: many thousands of elements, every pair of layouts,
steps of many tensors.

The tests below it put each twin beside the version of the ``.cu`` file that it is the twin of, on the emulator.  They
run in the simulator's process, which ``test_twins_beside_their_versions`` starts; elsewhere they are skipped.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rawgrad.kernels import activation, conv2d, dropout, max_pool2d
from rawgrad.kernels._cuda.simulator import _has_simulator, simulated
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS, backends
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels.adagrad import adagrad_step
from rawgrad.kernels.adam import adam_step
from rawgrad.kernels.gemm import gemm
from rawgrad.kernels.rmsprop import rmsprop_step
from rawgrad.kernels.sgd import sgd_step
from rawgrad.kernels.softmax_cross_entropy import softmax_cross_entropy_forward

ROOT = Path(__file__).resolve().parents[2]
#: Seconds for one suite; the longest take one to two minutes on a machine with little else to do.
LIMIT = 600

#: file (or files that run together) -> which tests for numba_cuda run in the simulator, as pytest's -k has it.
SUITES = {
    # not: thousands of terms; most edges of tiles, each of them four times; most depths of many products; sums of
    # columns beside the products; most gradients of layers, which are made of the same products
    "test_gemm*.py": "not (large_products or same_bits_every_time or (further_products and not numba_cuda-32) or "
    "(long_columns and (wanted0 or float32)) or (begin_anywhere and not numba_cuda-3) or "
    "(goes_through_dropout and not (relu and wanted0 and float32)) or (layers_give and not wanted8) or "
    "(dropout_and_a_gradient and v2_smem_tile) or "
    "(one_after_the_other and not (dropout and float32)) or "
    "(edges_of_its_tiles and not (15-17-16 or (65-63-33 and float32 and v3_register_tile))))",
    # not: every kind twice, every length, every pair of layouts
    "test_activation.py": "not ((agree_with_the_definition and not v2_vector) or edges_of_blocks or any_strides)",
    # not: strips of many lengths; two thirds of the tiles; each start twice
    "test_max_pool2d.py": "not ((edges_of_vectors and not numba_cuda-3-2) or (start_anywhere and not (1 or 8)) or "
    "(edges_of_tiles and not (v3_register_tile and x_shape2)))",
    # not: a hundred thousand words; every p and layout
    "test_dropout.py": "not (mean_and_variance or long_sequences or (follow_the_definition and not 0.25))",
    # a row takes a third of a second: one of each kind of target, and what is special
    "test_softmax_cross_entropy.py": "hand_worked or (huge and float32) or labels_out or "
    "an_ignore_index or (agree_with_the_definition and v2_smem_tile and float32 and True and 0.1 and mean)",
    # not: tiles at their edges, one by one; long sums; every large shape
    "test_conv2d.py": "by_hand or no_channels or empty_batch or zeros_that_are_none or exactly_the_windows or "
    "(agree_with_torch and v2_smem_tile and not (x_shape0 or x_shape8 or x_shape9)) or "
    "(agree_with_their_definitions and v2_smem_tile)",
    "test_conv2d_fused.py": "(every_version_with_relu and v2_smem_tile and not x_shape1) or with_relu_into or "
    "with_relu_nan or pooling_nan",
    # every option once, in one dtype and layout
    "test_adagrad.py": "(equations and C-float32) or not (equations or torch)",
    "test_adam.py": "(equations and C-float32 and not C-float64) or not (equations or torch)",
    "test_rmsprop.py": "(equations and C-float32) or hand_worked or below_zero or nan_and or refusals",
    "test_sgd.py": "(equations and C-float32) or hand_worked or first_step or nan_and or refusals",
}


def in_simulator(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, where Numba simulates."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "RAWGRAD_BACKEND": "", "PYTEST_ADDOPTS": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT.parent, env=environment, capture_output=True, text=True, timeout=LIMIT)


#: What runs, or has run, in a process of its own: file -> its end.
STARTED: dict[str, Future[subprocess.CompletedProcess[str]]] = {}


def begin_ahead(items: list[pytest.Item], pool: ThreadPoolExecutor) -> None:
    """Start the processes of the selected tests, one after the other."""
    if simulated() or not _has_simulator():
        return
    names = [item.originalname for item in items]
    files = [item.callspec.params["file"] for item in items if item.originalname == test_the_kernels_own_tests.__name__]
    if test_twins_beside_their_versions.__name__ in names:
        files.append("test_twins.py")
    for file in files:
        chosen = f"numba_cuda and ({SUITES[file]})" if file in SUITES else "beside"
        options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=few", "-k", chosen]
        paths = map(str, sorted((ROOT / "tests" / "kernels").glob(file)))
        STARTED[file] = pool.submit(in_simulator, "-m", "pytest", *paths, *options)


def passed(file: str) -> None:
    """Wait for its process, and show what it says if tests failed."""
    done = STARTED[file].result()
    assert done.returncode == 0, f"in Numba's simulator:\n{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert int((re.findall(r"(\d+) passed", done.stdout) or "0")[-1]) > 0, done.stdout


starts_one = pytest.mark.skipif(simulated() or not _has_simulator(), reason="there is no simulator to start here")


@starts_one
@pytest.mark.slow
@pytest.mark.parametrize("file", SUITES)
def test_the_kernels_own_tests(file):
    passed(file)


@starts_one
@pytest.mark.slow
def test_twins_beside_their_versions():
    passed("test_twins.py")


def test_every_twin_is_tested():
    twins = {path.parent.name for path in (ROOT / "kernels").glob("*/numba_cuda.py")}
    tested = {file.removeprefix("test_").removesuffix(".py").removesuffix("*") for file in SUITES}
    assert twins - tested == set()


@pytest.mark.skipif(simulated(), reason="the simulator runs here")
def test_without_a_gpu_the_reason_is_given():
    reason = backends()["numba_cuda"]
    if reason is None:
        pytest.skip("Numba-CUDA runs here")
    assert reason.endswith("NUMBA_ENABLE_CUDASIM=1, set before the process starts, runs it in Numba's simulator")
    with pytest.raises(BackendError, match="backend 'numba_cuda' cannot run here"):
        use_backend("numba_cuda")


@starts_one
def test_it_is_too_late_once_numba_is_loaded():
    code = (
        "import numba, os; os.environ['NUMBA_ENABLE_CUDASIM'] = '1'\nfrom rawgrad.kernels._dispatch import backends\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print(backends()['numba_cuda'])"],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert "was set after Numba had been imported" in done.stdout, done.stderr


@starts_one
def test_the_cpu_kernels_run_beside_the_simulator():
    code = """if True:
        import numpy as np
        from rawgrad.kernels._dispatch import backend, backend_of
        from rawgrad.kernels._devices import device_named
        from rawgrad.kernels.gemm import gemm
        assert backend_of("cpu") == "numba" and backend_of("cuda") is None
        a, b = np.arange(12.0).reshape(3, 4), np.arange(20.0).reshape(4, 5)
        expected = gemm(a, b)
        assert (expected == a @ b).all()
        with backend("numba_cuda"):
            device = device_named("cuda")
            y = gemm(device.from_host(a), device.from_host(b))
            assert (device.to_host(y) == expected).all()
            assert (gemm(a, b) == expected).all()
        print("both")
    """
    done = in_simulator("-c", code)
    assert done.stdout.strip() == "both", done.stderr


# ---- beside the .cu versions

beside = pytest.mark.skipif(
    not simulated() or BACKENDS["emulated"].problem() is not None,
    reason="runs where Numba simulates and a C++ compiler is: test_twins_beside_their_versions starts that",
)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
#: Elsewhere the host's compiler may make a b + c one instruction, which rounds once.
ROUNDS_TWICE = platform.machine() in ("x86_64", "AMD64")


def numbers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compare(call, *host, exact=True, pins=None):
    """What ``call`` makes of the arrays on the twin and on the emulator: the same bits, or but for a few roundings."""
    found = []
    for name in ("numba_cuda", "emulated"):
        with use_backend(name, **(pins or {})):
            device = device_named("cuda")
            results = call(*(None if h is None else device.from_host(h) for h in host))
            found.append([device.to_host(r) for r in (results if isinstance(results, tuple) else (results,))])
    for twin, version in zip(*found, strict=True):
        assert twin.dtype == version.dtype
        if exact and ROUNDS_TWICE:
            assert twin.tobytes() == version.tobytes(), f"{abs(twin - version).max()} apart"
        else:
            few = 16 * np.finfo(twin.dtype).eps
            np.testing.assert_allclose(twin, version, rtol=few, atol=few * abs(version).max(initial=0))


@beside
@each_dtype
@pytest.mark.parametrize("version", ["v2_smem_tile", "v3_register_tile"])
@pytest.mark.parametrize("flags", [(False, True), (True, False)])
def test_gemm_beside_cu(dtype, version, flags):
    a = numbers(*((2, 40, 70) if flags[0] else (2, 70, 40)), dtype=dtype)
    b, bias = numbers(*((33, 40) if flags[1] else (40, 33)), dtype=dtype, seed=1), numbers(33, dtype=dtype, seed=2)
    options = {"transpose_a": flags[0], "transpose_b": flags[1], "activation": "relu", "version": version}
    compare(lambda *given: gemm(*given, **options), a, b, bias)


@beside
@each_dtype
@pytest.mark.parametrize("kind", activation.KINDS)
def test_activation_beside_cu(dtype, kind):
    def both_passes(grad, x):
        y = activation.activation_forward(x, kind)
        saved = y if activation.saves(kind) == "output" else x
        return y, activation.activation_backward(grad, saved, kind)

    compare(both_passes, *3 * numbers(2, 1100, dtype=dtype), exact=kind in ("relu", "leaky_relu"))


@beside
@each_dtype
@pytest.mark.parametrize("kernel_size", [2, 3, (2, 5)])
def test_max_pool2d_beside_cu(dtype, kernel_size):
    version, g = "v3_register_tile", max_pool2d.geometry((2, 3, 9, 21), kernel_size, 2, 1)

    def passes(x, grad):
        y, codes = max_pool2d.max_pool2d_forward(x, kernel_size, stride=2, padding=1, version=version)
        assert codes.dtype == np.uint8
        dx = max_pool2d.max_pool2d_backward(grad, codes, g, version=version)
        return y, codes, dx, max_pool2d.max_pool2d_gather(x, codes, g)

    compare(passes, np.rint(numbers(*g.x_shape, dtype=dtype)), numbers(*g.y_shape, dtype=dtype, seed=1))


@beside
@each_dtype
def test_dropout_beside_cu(dtype):
    def both(x, offset):
        return dropout.dropout_forward(x, 0.3, 2**63 + 5, offset), dropout.philox(
            7, offset, 1030, first_block=2**64 - 9
        )

    compare(both, numbers(1030, dtype=dtype), np.array([3], np.uint64))


@beside
@each_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_beside_cu(dtype, smoothing):
    def loss_and_gradient(z, labels, weight):
        options = {"label_smoothing": smoothing, "version": "v2_smem_tile"}
        return softmax_cross_entropy_forward(z, labels, weight=weight, **options)

    z = 3 * numbers(3, 300, dtype=dtype)  # two and three numbers for a thread
    compare(loss_and_gradient, z, np.array([5, -100, 299]), abs(numbers(300, dtype=dtype, seed=1)), exact=False)


STEPS = {
    "sgd": (sgd_step, 3, {"momentum": 0.9, "weight_decay": 0.1}),
    "adagrad": (adagrad_step, 3, {"lr_decay": 0.1, "weight_decay": 0.1}),
    "rmsprop": (rmsprop_step, 5, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (adam_step, 4, {"weight_decay": 0.1, "decoupled": True}),
}


@beside
@each_dtype
@pytest.mark.parametrize("name", STEPS)
def test_optimizer_steps_beside_cu(dtype, name):
    """In float32 bit for bit; the simulator has no fused multiply-add of doubles."""
    step, count, options = STEPS[name]

    def one_step(lr, at, *arrays):
        arguments = [[array] for array in arrays]
        step(*arguments, lr, *([] if name == "rmsprop" else [at]), **options)
        return (arrays[0], *arrays[2:])

    arrays = [abs(numbers(2100, dtype=dtype, seed=i)) for i in range(count)]  # a chunk and a part of one
    compare(one_step, np.array([0.01]), np.array([3]), *arrays, exact=dtype == np.float32)


@beside
@each_dtype
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((2, 3, 9, 10), (4, 3, 3, 3), {"padding": 1}),  # all of an image in a tile
        ((1, 4, 19, 18), (2, 2, 3, 2), {"stride": (2, 1), "dilation": (1, 2), "groups": 2}),  # several tiles; gaps
    ],
)
def test_conv2d_beside_cu(dtype, x_shape, weight_shape, options):
    g, pins = conv2d.geometry(x_shape, weight_shape, **options), {"conv2d": "v2_smem_tile"}

    def passes(x, weight, bias, grad):
        y = conv2d.conv2d_forward(x, weight, bias, activation="relu", **options)
        dx = conv2d.conv2d_backward_input(grad, weight, g)
        return y, dx, conv2d.conv2d_backward_weight(x, grad, g), conv2d.conv2d_backward_bias(grad)

    x, weight = numbers(*x_shape, dtype=dtype), numbers(*weight_shape, dtype=dtype, seed=1)
    grad, bias = numbers(*g.y_shape, dtype=dtype, seed=2), numbers(g.K, dtype=dtype, seed=3)
    compare(passes, x, weight, bias, grad, pins=pins)
