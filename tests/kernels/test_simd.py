"""Every method of ``@simd`` programs against NumPy, for each vector width that this processor has."""

from __future__ import annotations

import itertools
import math
import operator
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rawgrad.kernels import _simd
from rawgrad.kernels._errors import ArgumentError
from rawgrad.kernels._simd import Pointer, Stage, Value, simd, vector_bytes, vector_registers

WIDEST = vector_bytes()
FLOATS, INTEGERS = ("float32", "float64"), ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")


@pytest.fixture(params=[width for width in (16, 32, 64) if width <= WIDEST])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What ``vector_bytes()`` is in this run of the test."""
    monkeypatch.setenv("RAWGRAD_VECTOR_BYTES", str(request.param))
    vector_bytes.cache_clear()
    yield request.param
    monkeypatch.undo()
    vector_bytes.cache_clear()


def compiled(write: Callable[..., Any], arity: int, **options: Any) -> Callable[..., Any]:
    """A Numba function of so many arguments that calls ``simd(write)`` with them, kept nowhere."""
    names = ", ".join(f"a{i}" for i in range(arity))
    scope = {"staged": simd(write, **options) if options else simd(write)}
    exec(f"def call({names}): return staged({names})", scope)
    return numba.njit(scope["call"])


def run(write: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return compiled(write, len(arguments), **options)(*arguments)


def each_vector(s: Stage, n: Value, like: Pointer) -> Iterator[tuple[Value, int, Value]]:
    """The body of a loop over vectors: first element, lanes, mask of those that exist."""
    lanes = s.lanes(like)
    with s.range(0, n, lanes) as i:
        yield i, lanes, s.first(n - i, lanes)


def apply(expressions: list[Callable[..., Any]], *inputs: np.ndarray, result: str | None = None) -> list[np.ndarray]:
    """Each expression of the inputs, computed by vectors; masks come as bool."""
    n, kind = inputs[0].size, result or str(inputs[0].dtype)
    out = np.zeros((len(expressions), n), kind)

    def write(s: Stage, out: Pointer, n: Value, *pointers: Pointer) -> None:
        for i, lanes, here in each_vector(s, n, pointers[0]):
            values = [pointer.load(i, lanes, here) for pointer in pointers]
            for k, expression in enumerate(expressions):
                value = expression(*values)
                (out + n * k).store(i, value.to("bool") if kind == "bool" else value, here)

    def typed(s: Stage, out: Any, n: Any, a: Any, b: Any) -> None:
        write(s, out, n, a, b)

    run(typed, out.reshape(-1), n, inputs[0], inputs[-1])
    return list(out)


def special(dtype: str, n: int = 61) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays in which extreme values meet each other; ``n`` is no multiple of any number of lanes."""
    generator = np.random.default_rng(0)
    if dtype == "bool":
        return generator.random(n) < 0.5, generator.random(n) < 0.5
    if dtype in FLOATS:
        extremes = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, np.finfo(dtype).max, np.finfo(dtype).tiny / 4]
    else:
        info = np.iinfo(dtype)
        extremes = [0, 1, 2, info.max, info.max - 1, info.max // 2 + 1, info.min, info.min + 1]
    pairs = list(itertools.product(extremes[:7], extremes[-7:]))
    rest = generator.integers(0, 100, (n - len(pairs), 2)).tolist()
    a, b = np.array(pairs + rest, object).T
    return a.astype(dtype), b.astype(dtype)


def test_the_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WIDEST in (16, 32, 64)
    monkeypatch.delenv("RAWGRAD_VECTOR_BYTES", raising=False)
    vector_bytes.cache_clear()
    widest = vector_bytes()
    try:
        for wrong in ("8", "48", "128", "wide", "-16", "١٦"):
            monkeypatch.setenv("RAWGRAD_VECTOR_BYTES", wrong)
            vector_bytes.cache_clear()
            with pytest.raises(ArgumentError, match=f"16, 32 or 64 and at most {widest} here; got '{wrong}'"):
                vector_bytes()
        monkeypatch.setattr(_simd.platform, "machine", lambda: "arm64")
        monkeypatch.setenv("RAWGRAD_VECTOR_BYTES", "32")
        with pytest.raises(ArgumentError, match="at most 16 here"):
            vector_bytes()
        monkeypatch.setenv("RAWGRAD_VECTOR_BYTES", "")
        vector_bytes.cache_clear()
        assert (vector_bytes(), vector_registers()) == (16, 32)
    finally:
        monkeypatch.undo()
        vector_bytes.cache_clear()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_example_of_the_docstring(width: int, dtype: str) -> None:
    text = (_simd.__doc__ or "").partition("    @simd\n")[2].partition("\nand called")[0]
    scope: dict[str, Any] = {"simd": simd}
    exec("@simd\n" + textwrap.dedent(text), scope)
    axpy = scope["axpy"]
    call = numba.njit(lambda x, y, n: axpy(2.0, x, y, n))
    lanes = width // np.dtype(dtype).itemsize
    for n in (0, 1, lanes - 1, lanes, lanes + 1, 3 * lanes + 2):
        x, y = np.arange(n + lanes, dtype=dtype), np.full(n + lanes, 7, dtype)
        call(x, y, n)
        assert_array_equal(y, np.where(np.arange(n + lanes) < n, 2 * x + 7, 7).astype(dtype))


ARITHMETIC = [
    *(operator.add, operator.sub, operator.mul),
    lambda a, b: 3 - a,
    lambda a, b: 3 + b * 2,
    lambda a, b: a + b - a * 5,
    lambda a, b: -(a - b),
]
DIVISION = [operator.truediv, lambda a, b: 1 / b, lambda a, b: a / 3]
BITS = [
    *(operator.and_, operator.or_, operator.xor),
    lambda a, b: (a & 7) << 3,
    lambda a, b: (a | 1) ^ b,
]
OF_POSITIVE = [lambda a, b: a // (b | 1), lambda a, b: a % (b | 1), lambda a, b: a >> 2, lambda a, b: b // 3]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_arithmetic(width: int, dtype: str) -> None:
    a, b = special(dtype)
    expressions = ARITHMETIC + (DIVISION if dtype in FLOATS else BITS)
    with np.errstate(all="ignore"):
        for expression, found in zip(expressions, apply(expressions, a, b), strict=True):
            assert_array_equal(found, expression(a, b))
            if dtype in FLOATS:
                assert_array_equal(np.signbit(found[found == 0]), np.signbit(expression(a, b)[found == 0]))
        if dtype in INTEGERS:
            if dtype.startswith("int"):
                a, b = a & np.iinfo(dtype).max, b & np.iinfo(dtype).max
            for expression, found in zip(OF_POSITIVE, apply(OF_POSITIVE, a, b), strict=True):
                assert_array_equal(found, expression(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons(width: int, dtype: str) -> None:
    a, b = special(dtype)
    small = 1 if dtype == "bool" else 2
    pairs: list[tuple[Any, Any]] = [(f, f) for f in (operator.lt, operator.le, operator.gt, operator.ge)]
    pairs += [
        (lambda a, b: a.equals(b), operator.eq),
        (lambda a, b: a.is_nan(), lambda a, b: a != a),
        (lambda a, b: a < small, lambda a, b: a < small),
        (lambda a, b: (a < b) & (b >= small), lambda a, b: (a < b) & (b >= small)),
        (lambda a, b: (a < b) ^ 1, lambda a, b: ~(a < b)),
    ]
    if dtype not in FLOATS:
        unsigned = dtype.replace("int", "uint") if dtype.startswith("int") else dtype
        pairs.append((lambda a, b: a.above(b), lambda a, b: a.astype(unsigned) > b.astype(unsigned)))
    found = apply([ours for ours, _ in pairs], a, b, result="bool")
    for (_, theirs), result in zip(pairs, found, strict=True):
        assert_array_equal(result, theirs(a, b))


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_where(width: int, dtype: str) -> None:
    a, b = special(dtype)
    ours = [
        lambda a, b: (a < b).where(a, b),
        lambda a, b: (a < b).where(a, 3),
        lambda a, b: (a < b).where(3, b),
        lambda a, b: (a < b).where(a.lane(0), b),  # numbers are in every lane
        lambda a, b: (a < b).where(a, b.lane(1)),
        lambda a, b: (a < b).where(a.lane(0), b.lane(1)),
        lambda a, b: (a.lane(0) <= a.lane(0)).where(a, b),
        lambda a, b: (a.lane(0) < a.lane(0)).where(a, b),
    ]
    lanes = width // np.dtype(dtype).itemsize
    n = a.size // lanes * lanes  # whole vectors, so that each has these lanes
    a, b = a[:n], b[:n]
    first, second = (np.repeat(v[k::lanes], lanes) for v, k in ((a, 0), (b, 1)))
    less, equal = a < b, first <= first
    expected = [
        np.where(less, *pair)
        for pair in ((a, b), (a, a.dtype.type(3)), (a.dtype.type(3), b), (first, b), (a, second), (first, second))
    ]
    expected += [np.where(equal, a, b), np.where(first < first, a, b)]
    for found, right in zip(apply(ours, a, b), expected, strict=True):
        assert_array_equal(found, right)


@pytest.mark.parametrize("source", DTYPES)
def test_conversions(width: int, source: str) -> None:
    """Of all values that both types hold; whatever the lanes, the source's elements are taken 2 at a time."""
    x = special(source)[0][:60]
    outs = [np.zeros(x.size, dtype) for dtype in DTYPES]

    def write(s: Stage, n: Any, x: Any, *outs: Any) -> None:
        with s.range(0, n, 2) as i:
            for out in outs:
                out.store(i, x.load(i, 2).to(out.dtype))

    arguments = ", ".join(f"o{i}" for i in range(len(outs)))
    scope: dict[str, Any] = {"write": write}
    exec(f"def fixed(s, n, x, {arguments}): write(s, n, x, {arguments})", scope)
    run(scope["fixed"], x.size, x, *outs)
    for out in outs:
        with np.errstate(all="ignore"):
            held = np.ones(x.size, bool)
            if source in FLOATS and out.dtype.kind in "iu":
                info = np.iinfo(out.dtype)
                held = (x >= info.min) & (x < 2.0 ** (info.bits - (info.min < 0)))  # NaN is neither
            assert_array_equal(out[held], x.astype(out.dtype)[held], err_msg=f"{source} to {out.dtype}")


def test_masks_of_loads_and_stores(width: int) -> None:
    n = 37
    x = np.arange(1, n + 1, dtype=np.float32)
    loaded, stored = np.full(64, -1, np.float32), np.full(64, -1, np.float32)

    def write(s: Any, x: Any, loaded: Any, stored: Any, n: Any) -> None:
        for i, lanes, here in each_vector(s, n, x):
            odd = (s.counting(lanes, 32) & 1).equals(1)
            loaded.store(i, x.load(i, lanes, here & odd))
            stored.store(i, x.load(i, lanes, here), here & odd)

    run(write, x, loaded, stored, n)
    lanes = width // 4
    number = np.arange(64)
    odd, padded = number % lanes % 2 == 1, np.pad(x, (0, 64 - n))
    end = -(-n // lanes) * lanes
    assert_array_equal(loaded, np.where(number < end, np.where(odd & (number < n), padded, 0), -1))
    assert_array_equal(stored, np.where(odd & (number < n), padded, -1))


def test_one_lane_is_a_number(width: int) -> None:
    x, y = np.arange(8.0), np.zeros(8)

    def write(s: Any, x: Any, y: Any) -> None:
        with s.range(0, 8) as i:
            here = s.first(5 - i, 1)
            y.store(i, x.load(i, 1, here) + x.load(i, 1) + s.counting(1).to("float64"), here)

    run(write, x, y)
    assert_array_equal(y, [0, 2, 4, 6, 8, 0, 0, 0])


PAST_THE_END = """
import ctypes, mmap, numba, numpy as np
from rawgrad.kernels._simd import simd, vector_bytes
size = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * size)
whole = np.frombuffer(memory, np.uint8)
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(whole.ctypes.data + size), size, 0) == 0
last = whole[:size]  # what lies behind may not be touched

@simd
def add(s, x):
    lanes = s.lanes(x)
    with s.range(0, 5, lanes) as i:
        here = s.first(5 - i, lanes)
        x.store(i, x.load(i, lanes, here) + 1, here)

for dtype in (np.float32, np.float64, np.uint8):
    x = last[size - 5 * np.dtype(dtype).itemsize:].view(dtype)
    numba.njit(lambda x: add(x))(x)
    assert (x == 1).all()
    x[:] = 0
print("ok", vector_bytes())
"""


def test_what_a_mask_excludes_is_not_touched(width: int) -> None:
    done = subprocess.run([sys.executable, "-c", PAST_THE_END], capture_output=True, text=True)
    assert done.stdout == f"ok {width}\n", done.stderr


def test_pointers(width: int) -> None:
    x, y = np.arange(10, dtype=np.int32), np.zeros(10, np.int32)

    def write(s: Any, x: Any, y: Any, at: Any) -> None:
        y[0] = x[at]
        y[1] = 7
        (y + 2)[at] = (x + at)[1] + 1
        s.pointer(at, x)  # of any address; nothing is read
        y.store(6, s.splat(x[9], 2))
        y[at + 5] = s.zero(y) + s.constant(5, y)
        y[x[9]] = x[x[3]]  # an index may have any integer type

    run(write, x, y, 3)
    assert_array_equal(y, [3, 7, 0, 0, 0, 5, 9, 9, 5, 3])


def test_a_pointer_to_an_address(width: int) -> None:
    x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)

    def write(s: Any, x: Any, y: Any, address: Any) -> None:
        elsewhere = s.pointer(address, x)
        y.store(0, elsewhere.load(1, s.lanes(x)))

    run(write, x, y, x.ctypes.data)
    assert_array_equal(y[: width // 4], x[1 : 1 + width // 4])


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_shuffles_and_lanes(width: int, dtype: str) -> None:
    lanes = width // np.dtype(dtype).itemsize
    x = np.arange(2 * lanes).astype(dtype)
    orders = {
        "reversed": list(reversed(range(lanes))),
        "interleaved": [i // 2 + lanes * (i % 2) for i in range(lanes)],
        "longer": list(range(2 * lanes)),
        "shorter": [lanes + 1, 1],
        "one of the other": [lanes + 1],
        "one": [1],
    }
    out = np.zeros((len(orders) + 1, 2 * lanes), dtype)

    def write(s: Any, x: Any, out: Any) -> None:
        a, b = x.load(0, lanes), x.load(lanes, lanes)
        for row, order in enumerate(orders.values()):
            shuffled = a.shuffle(order, b)
            assert shuffled.lanes == len(order)
            out.store(2 * lanes * row, shuffled)
        row += 1
        out[2 * lanes * row] = b.lane(lanes - 1)
        out[2 * lanes * row + 1] = a.shuffle([lanes])  # without another, a's again

    run(write, x, out.reshape(-1))
    for row, order in zip(out, orders.values(), strict=False):
        assert_array_equal(row[: len(order)], x[order])
    assert_array_equal(out[-1, :2], [x[-1], x[0]])
    for wrong in (
        lambda s, x: x.load(0, lanes).lane(lanes) and None,
        lambda s, x: x.load(0, lanes).shuffle([2 * lanes]) and None,
        lambda s, x: x.load(0, lanes).shuffle([-1]) and None,
    ):
        with pytest.raises(AssertionError):
            run(wrong, x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_reductions_meet_by_halves(width: int, dtype: str) -> None:
    lanes = width // np.dtype(dtype).itemsize
    x = np.random.default_rng(1).integers(-1000, 1000, lanes).astype(dtype)
    out = np.zeros(3, dtype)

    def write(s: Any, x: Any, out: Any) -> None:
        a = x.load(0, lanes)
        out[0] = a.sum()
        out[1] = a.reduce(lambda a, b: a - b * 3)  # shows the order
        out[2] = a.reduce(lambda a, b: (a > b).where(a, b))

    run(write, x, out)
    value = x
    while value.size > 1:
        value = value[: value.size // 2] - value[value.size // 2 :] * np.dtype(dtype).type(3)
    assert_array_equal(out, [x.sum(), value[0], x.max()])
    with pytest.raises(AssertionError):  # three lanes have no halves
        run(lambda s, x: x.load(0, 3).sum() and None, np.zeros(3, dtype))


@pytest.mark.parametrize(("dtype", "integer"), [("float32", "int32"), ("float64", "int64")])
def test_bits_and_halves(width: int, dtype: str, integer: str) -> None:
    x = special(dtype)[0]
    lanes = width // np.dtype(dtype).itemsize
    n = x.size // lanes * lanes
    bits, back, halves = np.zeros(n, integer), np.zeros(n, dtype), np.zeros(2 * n, np.int32)

    def write(s: Any, x: Any, bits: Any, back: Any, halves: Any, n: Any) -> None:
        with s.range(0, n, lanes) as i:
            value = x.load(i, lanes).bits()
            bits.store(i, value)
            back.store(i, value.as_float())
            if dtype == "float64":
                halves.store(i * 2, value.halves())

    run(write, x, bits, back, halves, n)
    assert_array_equal(bits, x[:n].view(integer))
    assert_array_equal(back.view(integer), x[:n].view(integer))
    if dtype == "float64":
        assert_array_equal(halves, x[:n].view(np.int32))


def test_loops_conditions_and_variables(width: int) -> None:
    out = np.zeros(12, np.int64)

    def write(s: Any, out: Any, n: Any, yes: Any) -> None:
        total, runs = s.variable(s.integer(0)), s.variable(s.integer(0))
        with s.range(3, n, 4) as i, s.range(i, n) as j:
            total.value = total.value + i * j
            runs.value = runs.value + 1
        out[0], out[1] = total.value, runs.value
        with s.range(5, 5):
            out[2] = 1  # never
        with s.when(yes):
            out[3] = 1
        with s.when(n < 0):
            out[4] = 1  # never
        with s.when(n > 0):
            out[5] = 1
        count, left = s.variable(s.integer(0)), s.variable(s.integer(-1))

        def body(i: Any, rest: Any) -> None:
            if rest is None:
                count.value = count.value + 1
            else:
                left.value = rest

        s.each(s.integer(1), n, 4, body)
        out[6], out[7] = count.value, left.value
        for k in range(3):  # unrolled
            out[8 + k] = k * n

    run(write, out, 16, True)
    pairs = [(i, j) for i in range(3, 16, 4) for j in range(i, 16)]
    assert_array_equal(out, [sum(i * j for i, j in pairs), len(pairs), 0, 1, 0, 1, 3, 3, 0, 16, 32, 0])
    run(write, out := np.zeros(12, np.int64), 13, False)
    assert_array_equal(out[[3, 6, 7]], [0, 3, -1])  # nothing left: the body does not run for it


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions(width: int, dtype: str) -> None:
    a, b = special(dtype)
    kind = np.dtype(dtype).type
    a[50:55], b[50:55] = [0.5, 1.5, 2.5, -0.5, -2.5], [-1, 1, -0.0, 0.0, np.nan]
    apart = 2.0 ** -(12 if dtype == "float32" else 27)
    a[55], b[55] = 1 + apart, -(1 + 2 * apart)  # a² + b is apart², or 0 when the product is rounded first
    ours = [
        lambda a, b: a.stage.sqrt(a),
        lambda a, b: a.stage.abs(a),
        lambda a, b: a.stage.round(a),
        lambda a, b: a.stage.copysign(a, b),
        lambda a, b: a.stage.fma(a, a, b),
        lambda a, b: a.stage.library("exp", a),
        lambda a, b: a.stage.library("tanh", a),
    ]
    root, absolute, rounded, signed, fused, exponential, tangent = apply(ours, a, b)
    with np.errstate(all="ignore"):
        assert_array_equal(root, np.sqrt(a))
        assert_array_equal(absolute, np.abs(a))
        assert_array_equal(rounded, np.rint(a))
        assert_array_equal(np.signbit(rounded), np.signbit(np.rint(a)))
        assert_array_equal(signed, np.copysign(a, b))
        assert_array_equal(np.signbit(signed), np.signbit(np.copysign(a, b)))
        assert fused[55] == kind(apart) ** 2 != a[55] * a[55] + b[55]
        np.testing.assert_allclose(exponential, np.exp(a), rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_allclose(tangent, np.tanh(a), rtol=4 * np.finfo(dtype).eps)
        ordinary = np.isfinite(a) & (np.abs(a) < 1e10) & np.isfinite(b) & (np.abs(b) < 1e10)
        np.testing.assert_allclose(fused[ordinary], (a * a + b)[ordinary], rtol=1e-5, atol=1e-6)
    one = np.zeros(3, dtype)

    def numbers(s: Any, x: Any, out: Any) -> None:
        out[0], out[1], out[2] = s.sqrt(x[0]), s.library("log", x[0]), s.fma(x[0], x[0], x[0])

    run(numbers, np.full(1, 4, dtype), one)
    np.testing.assert_allclose(one, [2, math.log(4), 20], rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_prefetching_changes_nothing(width: int, dtype: str) -> None:
    def ahead(s: Any, x: Any, out: Any) -> None:
        x.prefetch(0)
        x.prefetch(10**15)
        out.prefetch(s.integer(-(10**6)), to_write=True)
        out[0] = x[0]

    run(ahead, x := np.full(3, 4, dtype), out := np.zeros(3, dtype))
    assert_array_equal(out, [4, 0, 0])
    assert_array_equal(x, 4)


def test_arguments_and_results(width: int) -> None:
    seen: list[type] = []

    def write(s: Any, x: Any, i: Any, flag: Any) -> Any:
        seen.append(type(i))
        return x[i] + x[i]

    double = simd(write, returns="x")
    x = np.array([1, 20, 3], np.uint8)
    assert numba.njit(lambda x, i: double(x, i, True))(x, 1) == 40  # a number of the running program
    assert seen == [Value]
    assert numba.njit(lambda x: double(x, 2, False))(x) == 6  # one that is known while compiling
    assert seen == [Value, int]
    assert numba.njit(lambda x: double(x, i=1, flag=False))(x) == 40

    def counted(s: Any, n: Any, extra: Any = 5) -> Any:
        return s.integer(n) + extra

    count = simd(counted, returns="int64")
    assert numba.njit(lambda n: count(n) + count(n, 1))(np.int32(-3)) == 0
    assert numba.njit(lambda n: count(n, 1))(np.uint8(200)) == 201  # zeros in front of what has no sign
    negative = simd(lambda s, n: n < 0, returns="boolean")
    assert numba.njit(lambda n: negative(n))(np.int8(-1)) is True
    assert numba.njit(lambda n: negative(n))(np.uint32(2**32 - 1)) is False


@pytest.mark.parametrize(
    ("write", "arguments", "message"),
    [
        (lambda s, x: None, (np.zeros((4, 4)).T,), "C-contiguous"),
        (lambda s, x: None, (np.zeros(8)[::2],), "C-contiguous"),
        (lambda s, x: None, (1j,), "arrays and numbers; got complex128"),
        (lambda s, x: x[0] // 2 and None, (np.zeros(4),), "udiv is not for double"),
        (lambda s, x: x[0] & 2 and None, (np.zeros(4),), "and_ is not for double"),
        (lambda s, x: x[0] / 2 and None, (np.zeros(4, np.int32),), "fdiv is not for i32"),
        (lambda s, x: x[0] + 2.5 and None, (np.zeros(4, np.int32),), "2.5 is not an integer"),
        (lambda s, x: x[0] + x[0].to("float32") and None, (np.zeros(4),), "double"),  # types are not mixed
        (lambda s, x: x.store(0, s.counting(2)), (np.zeros(4),), "double"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(write: Callable[..., Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(write, *arguments)


NETWORK = """
import sys
import numpy as np
import rawgrad as rg
from rawgrad import nn, optim, functional as F
from rawgrad.kernels._simd import vector_bytes

def trained(backend):
    with rg.backend(backend):
        rg.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1, bias=False),  # a bias would have no gradient but rounding, before a norm
            nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 5, padding=2),
            nn.GroupNorm(2, 6), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 37), nn.LayerNorm(37),
            nn.Tanh(), nn.Dropout(0.25), nn.Linear(37, 11), nn.SiLU(), nn.Linear(11, 7),
        )
        x = rg.randn(9, 2, 13, 13)
        labels = rg.tensor(np.arange(9) % 7)
        losses = []
        for make in (lambda p: optim.SGD(p, 0.05, momentum=0.9), lambda p: optim.Adam(p, 0.01)):
            optimizer = make(model.parameters())
            for _ in range(3):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return np.array(losses), np.concatenate([p.array.ravel() for p in model.parameters()])

ours, theirs = trained("numba"), trained("numpy")
for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
print("ok", vector_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("bytes_", [width for width in (16, 32) if width < WIDEST])
def test_kernels_at_the_widths_of_other_processors(bytes_: int) -> None:
    environment = {**os.environ, "RAWGRAD_VECTOR_BYTES": str(bytes_)}
    done = subprocess.run([sys.executable, "-c", NETWORK], capture_output=True, text=True, env=environment)
    assert done.stdout == f"ok {bytes_}\n", done.stderr
