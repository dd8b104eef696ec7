"""CUDA sources as text, and what a launch makes of them: signatures, arguments as C lays them out, refusals, faults.

No kernel runs: a stand-in for the runtime takes what :class:`Instance` hands over.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rawgrad.kernels import _devices, _faults, _launch
from rawgrad.kernels._cuda.source import HEADERS, Parameter, Signature, read_source
from rawgrad.kernels._devices import Device
from rawgrad.kernels._errors import ArgumentError, BackendError, DeviceError, DtypeError, LaunchError, ShapeError
from rawgrad.kernels._faults import NO_FAULT, check_faults, fault_flag, watch
from rawgrad.kernels._launch import BOOLS, FLOATS, Kernel, Packed

# ---- the stand-in


class FakeArray(np.ndarray):
    """An array of the stand-in's device."""

    def get(self) -> np.ndarray:
        return np.array(self)


class FakeRuntime:
    """Remembers what it is given, and launches nothing."""

    def __init__(self) -> None:
        self.synchronous = False
        self.current = 1
        self.sm = 80
        self.loaded: list[str] = []
        self.bound: list[tuple[Any, ...]] = []
        self.launches: list[bytes] = []
        self.waits = 0

    def architecture(self) -> int:
        return self.sm

    def multiprocessors(self) -> int:
        return 7

    def stream(self) -> int:
        return self.current

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def load(self, kernel: Kernel, expression: str) -> str:
        self.loaded.append(expression)
        return expression

    def bind(self, handle: str, *rest: Any) -> Callable[[], None]:
        self.bound.append((handle, *rest))
        return lambda: self.launches.append(rest[3])


def on_device(values: Any) -> Any:
    return np.array(values).view(FakeArray)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    fake = FakeRuntime()

    def concatenate(arrays: Sequence[Any]) -> Any:
        fake.waits += 1
        return np.concatenate(arrays).view(FakeArray)

    module = SimpleNamespace(
        full=lambda shape, value, dtype: np.full(shape, value, dtype).view(FakeArray), concatenate=concatenate
    )
    monkeypatch.setitem(_devices._by_type, FakeArray, Device("cuda", FakeArray, module))
    monkeypatch.setitem(_launch._runtimes, FakeArray, fake)
    yield fake
    _faults._free_flags.pop(FakeArray, None)
    for key in [key for key in _faults._watched if key[0] is FakeArray]:
        del _faults._watched[key]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Write a source into a folder of its own; its kernels are forgotten afterwards."""

    def write(text: str, name: str = "source.cu") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    for key in [key for key in _launch.KERNELS if key[0].parent == tmp_path]:
        del _launch.KERNELS[key]


# ---- declarations

X = Parameter("x", "T", True, True)
Y = Parameter("y", "T", True, False)
N = Parameter("n", "int", False, False)

DECLARATIONS = {
    "plain": ("__global__ void k(int n) {}", Signature("k", (), (N,))),
    "nothing": ("__global__ void k() {}", Signature("k", (), ())),
    "void": ("__global__ void k( void ) {}", Signature("k", (), ())),
    "linkage": ('extern "C" __global__ void k(int n) {}', Signature("k", (), (N,))),
    "linkage inside": ('__global__ extern "C" void k(int n);', Signature("k", (), (N,))),
    "static": ("static __global__ inline void k(int n) {}", Signature("k", (), (N,))),
    "void first": ("void __global__ k(int n) {}", Signature("k", (), (N,))),
    "launch bounds": (
        "template <class T>\n__global__ void __launch_bounds__(4 * (32 + 32), 2)\nk(const T* x, T* y) {}",
        Signature("k", ("T",), (X, Y)),
    ),
    "cluster": (
        "__global__ __cluster_dims__(2, 1, 1) void __launch_bounds__(128) k(int n) {}",
        Signature("k", (), (N,), ("2", "1", "1")),
    ),
    "cluster before global": (
        "template <int SIDE> __cluster_dims__(SIDE, 2) __global__ void k(int n) {}",
        Signature("k", ("SIDE",), (N,), ("SIDE", "2")),
    ),
    "words between template and global": (
        "template <class T> static __launch_bounds__(64) __global__ void k(T const* x, T*y) {}",
        Signature("k", ("T",), (X, Y)),
    ),
    "many template parameters": (
        "template <typename T, bool FLAG = (3 > 2), int SIZE = 1 << 4, class Map = Pair<int, T>, typename... REST>\n"
        "__global__ void k(const T *__restrict__ x, int n) {}",
        Signature("k", ("T", "FLAG", "SIZE", "Map", "REST"), (X, N)),
    ),
    "a template that ends before": (
        "template <class T> struct Other { T of; };\ntemplate <class T> __device__ T f(T x) { return x; }\n"
        "__global__ void k(int n) {}",
        Signature("k", (), (N,)),
    ),
    "comments": (
        "/* __global__ void no(int x); */ __global__ void k(/* rows, ) */ int n, // and ) more\n const int m) {}",
        Signature("k", (), (N, Parameter("m", "int", False, True))),
    ),
    "strings": (
        '__device__ const char* a = "/* \\" __global__ void no(int x)"; __global__ void k(int n) {}  // */',
        Signature("k", (), (N,)),
    ),
    "directives": (
        "#define MY_KERNEL \\\n  __global__ void\n#if 0 && __global__\n#endif\n__global__ void k(int n) {}",
        Signature("k", (), (N,)),
    ),
    "default argument": ("__global__ void k(int n = 2 * (3 + 4)) {}", Signature("k", (), (N,))),
    "declared before": (
        "__global__ void k(int rows);\n__global__ void k(int n) {}",
        Signature("k", (), (Parameter("rows", "int", False, False),)),
    ),
    "instantiated": (
        "template <class T> __global__ void k(T* y) {}\ntemplate __global__ void k<float>(float*);\n"
        "template <> __global__ void k<double>(double* y) {}",
        Signature("k", ("T",), (Y,)),
    ),
    "constness": (
        "__global__ void k(const volatile float* a, float const* __restrict b, float* const c, float *d) {}",
        Signature(
            "k",
            (),
            tuple(
                Parameter(name, "float", True, constant) for name, constant in zip("abcd", (1, 1, 0, 0), strict=True)
            ),
        ),
    ),
    "templates as types": (
        "template <int MAX>\n"
        "__global__ void k(const __grid_constant__ List<MAX, Pair<int, 2>> list, struct Window w) {}",
        Signature(
            "k",
            ("MAX",),
            (Parameter("list", "List<MAX, Pair<int, 2>>", False, True), Parameter("w", "Window", False, False)),
        ),
    ),
}


@pytest.mark.parametrize(("text", "expected"), DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_is_understood(write: Any, text: str, expected: Signature) -> None:
    assert read_source(write(text)).signatures == {"k": expected}


def test_several_kernels_keep_their_order(write: Any) -> None:
    text = "__global__ void b(int n) {}\nnamespace { __global__ void a(int n) {} }\n__global__ void c(int n);"
    assert list(read_source(write(text)).signatures) == ["b", "a", "c"]


MISUNDERSTOOD = {
    "unnamed": ("void k(int) {}", "this parameter is not understood: 'int'"),
    "unnamed pointer": ("void k(const float*) {}", r"this parameter is not understood: 'const float\*'"),
    "two words, unnamed": ("void k(unsigned int) {}", "this parameter is not understood: 'unsigned int'"),
    "reference": ("void k(const int& n) {}", "this parameter is not understood: 'const int& n'"),
    "array": ("void k(float x[4]) {}", r"this parameter is not understood: 'float x\[4\]'"),
    "pointer to pointer": ("void k(float** x) {}", r"this parameter is not understood: 'float\*\* x'"),
    "function": ("void k(int (*f)(int), int n) {}", r"this parameter is not understood: 'int \(\*f\)\(int\)'"),
    "endless": ("void k(int n, (float) {}", r"a parenthesis is not closed: '\(int n, \(float\) \{\}'"),
    "no function": ("= 3;", "this kernel's declaration is not understood: '= 3;'"),
    "two kernels of one name": (
        "void k(int n) {}\n__global__ void k(float* n) {}",
        "kernel 'k' is declared twice, with different parameters",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISUNDERSTOOD.values(), ids=MISUNDERSTOOD)
def test_what_is_not_understood_is_refused(write: Any, text: str, message: str) -> None:
    path = write(f"__global__ {text}")
    with pytest.raises(LaunchError, match=re.escape(str(path)) + ": " + message):
        read_source(path)


STRUCTS = {
    "int a, b;\n int c;": ("a", "b", "c"),
    "int a; // b\n /* int c; */ int d = 4, e;": ("a", "d", "e"),
    "int size[2], n; const int32_t m;": ("size[0]", "size[1]", "n", "m"),
    "static constexpr int SIZE = 4; int a;": ("a",),
    "int a; float b;": None,
    "int *a;": None,
    "int a, *b;": None,
    "unsigned int a;": None,
    "long int a;": None,
    "int a[SIZE];": None,
    "int &a;": None,
    "": None,
}


@pytest.mark.parametrize(("body", "members"), STRUCTS.items(), ids=lambda v: str(v).replace("\n", " "))
def test_structs_of_int_alone_are_known(write: Any, body: str, members: Any) -> None:
    structs = read_source(write(f"struct S {{ {body} }};\n__global__ void k(S s) {{}}")).structs
    assert structs.get("S") == members


def test_a_struct_with_an_alignment_of_its_own_is_not_taken_for_its_ints(write: Any) -> None:
    source = read_source(write("struct alignas(16) S { int a; };\nstruct B : A { int a; };\n__global__ void k(S s) {}"))
    assert source.structs == {}


# ---- headers


def shown_lines(text: str, path: Path) -> Iterator[tuple[str, int, str]]:
    """(file, line number, line) as a compiler counts them by the #line directives; it begins in ``path``."""
    file, number = str(path), 1
    for line in text.splitlines():
        directive = re.fullmatch(r'#line (\d+) "(.*)"', line)
        if directive:
            file, number = directive[2], int(directive[1])
        else:
            yield file, number, line
            number += 1


def test_headers_stand_in_place_of_their_includes_and_every_line_keeps_its_number(write: Any) -> None:
    write("#pragma once\n// of inner\nint inner;\n", "inner.cuh")
    write('#pragma once\n\n#include "inner.cuh"\nint outer;\n#include "warp.cuh"\nint last;\n', "outer.cuh")
    path = write(
        '// head\n#include "outer.cuh"  // ours\n  #  include "inner.cuh"\nint own;\n\n#include "warp.cuh"\nint end;'
    )
    source = read_source(path)
    found = list(shown_lines(source.text, path))
    for name, number, line in found:
        expected = [*Path(name).read_text().splitlines(), ""][number - 1]  # a header ends with an empty line
        assert line in (expected, "") or "#pragma once" in expected, (name, number)
    for word in ("int inner;", "int outer;", "int last;", "int own;", "int end;"):
        assert [line for _, _, line in found].count(word) == 1
    assert source.text.count("T warp_sum(T value)") == 1, "a header is put in once"
    assert not re.search(r'#\s*include\s*"\w+\.cuh"', source.text)


def test_our_header_goes_before_one_of_the_same_name(write: Any) -> None:
    write("int mine;", "warp.cuh")
    assert "int mine;" not in read_source(write('#include "warp.cuh"\n')).text


def test_a_header_that_does_not_exist_is_named(write: Any) -> None:
    path = write('#include "absent.cuh"\n')
    message = f"{path}: header 'absent.cuh' is neither in {HEADERS} nor beside the source"
    with pytest.raises(LaunchError, match=re.escape(message)):
        read_source(path)


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"absent\.cu cannot be read: No such file or directory"):
        read_source(tmp_path / "absent.cu")


def test_a_source_that_has_changed_is_read_again(write: Any) -> None:
    assert list(read_source(write("__global__ void a(int n) {}")).signatures) == ["a"]
    assert list(read_source(write("__global__ void other(int n) {}")).signatures) == ["other"]


# ---- numbers

INTEGERS = {
    "char": np.int8,
    "signed char": np.int8,
    "int8_t": np.int8,
    "unsigned char": np.uint8,
    "char unsigned": np.uint8,
    "uint8_t": np.uint8,
    "short": np.int16,
    "short int": np.int16,
    "int16_t": np.int16,
    "unsigned short": np.uint16,
    "short unsigned int": np.uint16,
    "uint16_t": np.uint16,
    "int": np.int32,
    "signed": np.int32,
    "signed int": np.int32,
    "int32_t": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "uint32_t": np.uint32,
    "long": np.int64,
    "long int": np.int64,
    "long long": np.int64,
    "long long int": np.int64,
    "signed long long": np.int64,
    "int64_t": np.int64,
    "unsigned long": np.uint64,
    "long unsigned int": np.uint64,
    "unsigned long long": np.uint64,
    "unsigned long long int": np.uint64,
    "size_t": np.uint64,
    "uint64_t": np.uint64,
}


def number_kernel(write: Any, kind: str) -> Callable[[Any], bytes]:
    """A function that gives the bytes of one number, as a kernel gets them."""
    kernel = Kernel(write(f"__global__ void k(float* y, {kind} number) {{}}"), "k")
    y = on_device(np.zeros(1, np.float32))

    def packed(number: Any) -> bytes:
        kernel(1, 1, y, number)
        arguments = _launch._runtimes[FakeArray].launches[-1]  # type: ignore[attr-defined]
        assert int.from_bytes(arguments[:8], "little") == y.ctypes.data
        return arguments[8:]

    return packed


@pytest.mark.parametrize(("kind", "dtype"), INTEGERS.items())
def test_integers_are_taken_in_their_range_alone(runtime: FakeRuntime, write: Any, kind: str, dtype: Any) -> None:
    packed, limits = number_kernel(write, kind), np.iinfo(dtype)
    for number in (limits.min, 0, 1, limits.max, dtype(limits.max), np.int8(7), True):
        assert packed(number) == np.array(number, dtype).tobytes()
    wrong: list[Any] = [limits.min - 1, limits.max + 1, 10**30, 1.0, np.float32(1), 1j, "1", None, np.ones(1, dtype)]
    for number in wrong:
        message = f"k: number must be a number that fits {np.dtype(dtype)}; got {number!r}"
        with pytest.raises(ArgumentError, match=re.escape(message)):
            packed(number)


@pytest.mark.parametrize(("kind", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_floats_are_rounded_but_never_overflow(runtime: FakeRuntime, write: Any, kind: str, dtype: Any) -> None:
    packed, largest = number_kernel(write, kind), float(np.finfo(dtype).max)
    for number in (
        0.1,
        -1e-300,
        largest,
        -largest,
        np.inf,
        -np.inf,
        3,
        np.float32(0.3),
        np.float16(2),
        np.int64(2**60),
    ):
        assert packed(number) == np.array(number).astype(dtype).tobytes()
    assert np.isnan(np.frombuffer(packed(np.nan), dtype)).all()
    wrong: list[Any] = [10**400, -(10**309), 1j, np.complex64(1), "1", None, np.ones(1, dtype)]
    for number in wrong + ([1e39, -3.5e38, 10**39] if dtype is np.float32 else []):
        with pytest.raises(ArgumentError, match=re.escape(f"k: number must be a number that fits {np.dtype(dtype)}")):
            packed(number)


def test_a_flag_is_a_boolean_and_nothing_else(runtime: FakeRuntime, write: Any) -> None:
    packed = number_kernel(write, "bool")
    assert [packed(flag) for flag in (False, True, np.False_, np.True_)] == [b"\0", b"\1", b"\0", b"\1"]
    for number in (0, 1, 1.0, "x", None):
        with pytest.raises(
            ArgumentError, match=re.escape(f"k: number must be a number that fits bool; got {number!r}")
        ):
            packed(number)


# ---- the layout in C

SCALARS = [
    "bool",
    "signed char",
    "unsigned char",
    "short",
    "unsigned short",
    "int",
    "unsigned",
    "long long",
    "uint64_t",
    "float",
    "double",
]
#: With the dtype of the array that each takes; for CUDA's vectors it is that of their components.
POINTERS = {
    "float*": np.float32,
    "const double*": np.float64,
    "unsigned char*": np.uint8,
    "int4*": np.int32,
    "const uchar4*": np.uint8,
    "longlong2*": np.int64,
}
STRUCT_TYPES = ["Pair", "Window", "List"]
DECLARED = """
struct Pair { int a, b; };
struct Window { int a; int size[2]; };
struct List { long long* data[3]; int n, m; };
"""


def marked(kind: str) -> tuple[Any, Any]:
    """An argument whose bytes are all 0, and one whose first byte is not."""
    if kind in STRUCT_TYPES:
        packed = Packed(bytes(32), []), Packed(b"\1" + bytes(31), [])
        return {"Pair": ((0, 0), (1, 0)), "Window": ((0, (0, 0)), (1, [0, 0])), "List": packed}[kind]
    if kind.endswith("*"):
        array = on_device(np.zeros(64, POINTERS[kind]))
        first = next(i for i in range(64) if array[i:].ctypes.data % 256)
        return None, array[first:]
    if kind in ("float", "double"):
        return 0.0, 1 + float(np.finfo("f4" if kind == "float" else "f8").eps)  # whose first byte is its last digit
    return (False, True) if kind == "bool" else (0, 1)


def test_arguments_lie_where_c_puts_the_members_of_a_struct(runtime: FakeRuntime, write: Any, tmp_path: Path) -> None:
    from rawgrad.kernels._emulator.build import compiler

    command = compiler()
    if command is None:
        pytest.skip("no C++ compiler")
    rng = random.Random(0)
    lists = [["float*", *rng.choices([*SCALARS, *POINTERS, *STRUCT_TYPES], k=rng.randint(1, 12))] for _ in range(60)]
    lists += [["float*", first, second] for first in SCALARS for second in (*SCALARS, *STRUCT_TYPES)]
    vectors = "struct int4; struct uchar4; struct longlong2;\n"
    program = f"#include <cstddef>\n#include <cstdint>\n#include <cstdio>\n{vectors}{DECLARED}"
    source = DECLARED
    for number, kinds in enumerate(lists):
        fields = [f"{kind} p{i}" for i, kind in enumerate(kinds)]
        source += f"__global__ void k{number}({', '.join(fields)}) {{}}\n"
        program += f"struct A{number} {{ {' '.join(f + ';' for f in fields)} }};\n"
    program += "int main() {\n"
    for number, kinds in enumerate(lists):
        for i in range(len(kinds)):
            program += f'  std::printf("%zu ", offsetof(A{number}, p{i}));\n'
        program += f'  std::printf("%zu\\n", sizeof(A{number}));\n'
    (tmp_path / "offsets.cpp").write_text(program + "}\n")
    subprocess.run([command, "-std=c++17", "-o", "offsets", "offsets.cpp"], cwd=tmp_path, check=True)
    said = subprocess.run([str(tmp_path / "offsets")], capture_output=True, text=True, check=True).stdout

    path = write(source)
    anchor = on_device(np.zeros(1, np.float32))
    for number, (kinds, line) in enumerate(zip(lists, said.splitlines(), strict=True)):
        *offsets, size = map(int, line.split())
        kernel = Kernel(path, f"k{number}")
        values = [marked(kind) for kind in kinds]
        values[0] = anchor, anchor

        def packed(chosen: int, kernel: Kernel = kernel, values: Any = values) -> bytes:
            kernel(1, 1, *(pair[i == chosen] for i, pair in enumerate(values)))
            return runtime.launches[-1]

        nothing = packed(0)
        assert int.from_bytes(nothing[:8], "little") == anchor.ctypes.data
        assert offsets[-1] < len(nothing) <= size, kinds
        for i in range(1, len(kinds)):
            different = [j for j, (a, b) in enumerate(zip(nothing, packed(i), strict=True)) if a != b]
            assert min(different) == offsets[i], (kinds, i)


# ---- launching

LAUNCHED = """
struct Window { int R, S, stride; };
struct List { float* of[4]; };

template <class T, bool FLAG>
__global__ void k(const T* x, T* y, const int* labels, int n, Window window, List list) {}

__global__ void simple(float* y) {}
__global__ void bare(int n) {}
__global__ void odd(half* y) {}
"""


@pytest.fixture
def launched(write: Any) -> Path:
    return write(LAUNCHED)


@pytest.fixture
def kernel(launched: Path) -> Kernel:
    return Kernel(launched, "k", T=FLOATS, FLAG=BOOLS)


def arguments(**changes: Any) -> list[Any]:
    """What ``k<float, ...>`` takes, with some of it changed."""
    usual = {
        "x": on_device(np.zeros((2, 3), np.float32)),
        "y": on_device(np.zeros(4, np.float32)),
        "labels": on_device(np.zeros(4, np.int32)),
        "n": 4,
        "window": (3, (3, 1)),
        "list": Packed(bytes(32), [on_device(np.zeros(1, np.float32))]),
    }
    assert changes.keys() <= usual.keys()
    return list({**usual, **changes}.values())


def test_a_bound_launch_is_checked_once_and_made_often(runtime: FakeRuntime, kernel: Kernel) -> None:
    given = arguments(labels=None)
    bound = kernel[np.float32, True].bind((5, 2), np.int64(64), *given, shared=48)
    assert bound is not None and runtime.launches == []
    for _ in range(3):
        bound()
    ((expression, grid, block, shared, buffer, operands),) = runtime.bound
    assert (expression, grid, block, shared) == ("k<float, true>", (5, 2, 1), (64, 1, 1), 48)
    assert runtime.launches == [buffer] * 3
    assert [(o.name, o.constant) for o in operands] == [("x", True), ("y", False), ("list[0]", False)]
    assert operands[0].array is given[0] and operands[2].array is given[5].arrays[0]
    assert runtime.loaded == ["k<float, true>"]
    kernel[np.float32, True](1, 1, *given)
    assert runtime.loaded == ["k<float, true>"], "an instance is loaded once"


@pytest.mark.parametrize("grid", [0, (3, 0), (0, 1, 1), (np.int64(0), 7)], ids=str)
def test_a_grid_without_blocks_has_nothing_to_launch(runtime: FakeRuntime, kernel: Kernel, grid: Any) -> None:
    assert kernel[np.float32, True].bind(grid, 64, *arguments()) is None
    kernel[np.float32, True](grid, 64, *arguments())
    assert runtime.bound == []


def test_an_empty_array_may_be_given(runtime: FakeRuntime, kernel: Kernel) -> None:
    kernel[np.float32, False](1, 32, *arguments(x=on_device(np.zeros((0, 3), np.float32))))
    assert len(runtime.launches) == 1


def strided() -> Any:
    return on_device(np.zeros((4, 6), np.float32))[:, ::2]


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "too few": (lambda: arguments()[:-1], ArgumentError, "k takes 6 arguments (x, y, labels, n, window, list); got 5"),
    "too many": (
        lambda: [*arguments(), 1],
        ArgumentError,
        "k takes 6 arguments (x, y, labels, n, window, list); got 7",
    ),
    "a list": (lambda: arguments(x=[1.0]), DtypeError, "k: x must be an array; got list"),
    "a number": (lambda: arguments(y=0), DtypeError, "k: y must be an array; got int"),
    "packed for a pointer": (lambda: arguments(x=Packed(b"", [])), DtypeError, "k: x must be an array; got Packed"),
    "of the host, first": (
        lambda: arguments(x=np.zeros(3, np.float32)),
        DeviceError,
        "k: CUDA kernels take arrays on device 'cuda'; got one on 'cpu'",
    ),
    "of the host, later": (
        lambda: arguments(y=np.zeros(3, np.float32)),
        DeviceError,
        "k: y is a ndarray where the other arrays are FakeArrays",
    ),
    "another dtype": (
        lambda: arguments(y=on_device(np.zeros(3))),
        DtypeError,
        "k: y must be float32; got float64",
    ),
    "another integer": (
        lambda: arguments(labels=on_device(np.zeros(3, np.int64))),
        DtypeError,
        "k: labels must be int32; got int64",
    ),
    "strides": (
        lambda: arguments(x=strided()),
        ShapeError,
        "k: x must be C-contiguous; got strides (24, 8) for shape (4, 3)",
    ),
    "integer out of range": (
        lambda: arguments(n=2**31),
        ArgumentError,
        "k: n must be a number that fits int32; got 2147483648",
    ),
    "packed for a number": (
        lambda: arguments(n=Packed(b"1", [])),
        ArgumentError,
        "k: n must be a number that fits int32; got Packed(",
    ),
    "too few members": (
        lambda: arguments(window=(3, 3)),
        ArgumentError,
        "k: window has members R, S, stride; got (3, 3)",
    ),
    "one number for a struct": (
        lambda: arguments(window=3),
        ArgumentError,
        "k: window has members R, S, stride; got 3",
    ),
    "a member that would be cut off": (
        lambda: arguments(window=(3, 3, 1.5)),
        ArgumentError,
        "k: window.stride must be a number that fits int32; got 1.5",
    ),
    "a member out of range": (
        lambda: arguments(window=(3, (2**31, 1))),
        ArgumentError,
        "k: window.S must be a number that fits int32; got 2147483648",
    ),
    "packed for a struct of ints": (
        lambda: arguments(window=Packed(bytes(12), [])),
        ArgumentError,
        "k: window has members R, S, stride; got Packed(",
    ),
    "a struct that is not packed": (
        lambda: arguments(list=(1, 2)),
        ArgumentError,
        "k: list is a List and must come packed; got tuple",
    ),
    "nothing for a struct": (
        lambda: arguments(list=()),
        ArgumentError,
        "k: list is a List and must come packed; got tuple",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit_are_refused(
    runtime: FakeRuntime, kernel: Kernel, make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        kernel[np.float32, True].bind(1, 32, *make())
    assert runtime.bound == []


def test_without_an_array_there_is_no_device(runtime: FakeRuntime, launched: Path) -> None:
    with pytest.raises(ArgumentError, match="bare: no array given, so there is no device to run on"):
        Kernel(launched, "bare")(1, 1, 3)
    with pytest.raises(ArgumentError, match="simple: no array given"):
        Kernel(launched, "simple")(1, 1, None)


SIZES: dict[str, tuple[Any, Any, int, str]] = {
    "grid x": (2**31, 1, 0, "k: grid (2147483648, 1, 1) exceeds (2147483647, 65535, 65535)"),
    "grid y": ((1, 65536), 1, 0, "k: grid (1, 65536, 1) exceeds"),
    "grid z": ((1, 1, 65536), 1, 0, "k: grid (1, 1, 65536) exceeds"),
    "negative grid": ((4, -1), 1, 0, "k: grid (4, -1, 1) must be positive"),
    "block x": (1, 1025, 0, "k: block (1025, 1, 1) exceeds (1024, 1024, 64)"),
    "block z": (1, (1, 1, 65), 0, "k: block (1, 1, 65) exceeds"),
    "no threads": (1, (32, 0), 0, "k: block (32, 0, 1) must be positive"),
    "threads together": (1, (32, 33), 0, "k: a block has at most 1024 threads; got (32, 33, 1)"),
    "no dimension": ((), 1, 0, "k: grid must be one to three integers; got ()"),
    "four dimensions": (1, (1, 1, 1, 1), 0, "k: block must be one to three integers; got (1, 1, 1, 1)"),
    "half a block": (1.5, 1, 0, "k: grid must be one to three integers; got 1.5"),
    "shared": (1, 1, -1, "k: dynamic shared memory must be a number of bytes; got -1"),
}


@pytest.mark.parametrize(("grid", "block", "shared", "message"), SIZES.values(), ids=SIZES)
def test_sizes_that_cuda_does_not_have_are_refused(
    runtime: FakeRuntime, kernel: Kernel, grid: Any, block: Any, shared: int, message: str
) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        kernel[np.float32, True].bind(grid, block, *arguments(), shared=shared)
    assert runtime.bound == []


def test_the_largest_sizes_are_taken(runtime: FakeRuntime, kernel: Kernel) -> None:
    kernel[np.float32, True].bind((2**31 - 1, 65535, 65535), (1, 16, 64), *arguments())
    kernel[np.float32, True].bind(1, [1024], *arguments())
    assert [bound[2] for bound in runtime.bound] == [(1, 16, 64), (1024, 1, 1)]


def test_a_kernel_that_the_source_does_not_have_is_named(runtime: FakeRuntime, launched: Path) -> None:
    message = f"{launched} has no kernel 'absent'; it has k, simple, bare, odd"
    with pytest.raises(LaunchError, match=re.escape(message)):
        Kernel(launched, "absent")(1, 1, on_device([1.0]))


def test_other_template_parameters_are_named(runtime: FakeRuntime, launched: Path) -> None:
    message = "k: the source's template parameters are ('T', 'FLAG'), declared were ('FLAG', 'T')"
    with pytest.raises(LaunchError, match=re.escape(message)):
        Kernel(launched, "k", FLAG=BOOLS, T=FLOATS)[True, np.float32](1, 1, *arguments())


def test_a_pointer_to_an_unknown_type_is_named(runtime: FakeRuntime, launched: Path) -> None:
    with pytest.raises(LaunchError, match=re.escape(f"{launched}: y points to 'half', which is no known type")):
        Kernel(launched, "odd")(1, 1, on_device([1.0]))


@pytest.mark.parametrize(
    ("architectures", "here", "runs"),
    [
        (("sm_80",), 80, True),
        (("sm_80",), 90, True),
        (("sm_90",), 80, False),
        (("sm_90a",), 90, True),
        (("sm_90a",), 100, False),
        (("sm_100", "sm_86"), 89, True),
    ],
)
def test_a_kernel_runs_on_its_architectures(
    runtime: FakeRuntime, launched: Path, architectures: tuple[str, ...], here: int, runs: bool
) -> None:
    runtime.sm = here
    kernel, y = Kernel(launched, "simple", architectures), on_device(np.zeros(1, np.float32))
    if runs:
        kernel(1, 1, y)
        assert len(runtime.launches) == 1
    else:
        with pytest.raises(BackendError, match=f"simple is for {', '.join(architectures)}; this GPU is sm_{here}"):
            kernel(1, 1, y)


# ---- instances


def test_a_template_argument_may_be_spelled_in_several_ways(kernel: Kernel) -> None:
    first = kernel[np.float32, 1]
    assert first.expression == "k<float, true>"
    for spelled in ((np.float32, True), (np.dtype("f4"), np.True_), ("float32", 1), (np.dtype(np.float32), 1.0)):
        assert kernel[spelled] is first
    assert kernel[np.float64, False].expression == "k<double, false>"
    assert [i.expression for i in kernel.instances()] == [
        f"k<{t}, {flag}>" for t in ("float", "double") for flag in ("false", "true")
    ]
    assert kernel.unit("k<double, true>") == ["k<double, false>", "k<double, true>"]


@pytest.mark.parametrize(
    "given",
    [np.float32, (np.float32,), (np.int32, True), (np.float32, 2), (np.float32, True, True), (), [1], ("x", True)],
)
def test_an_instance_that_is_not_shipped_is_refused(kernel: Kernel, given: Any) -> None:
    values = given if isinstance(given, tuple) else (given,)
    message = f"k: no instance for template arguments {values}; shipped are {kernel.templates}"
    with pytest.raises(LaunchError, match=re.escape(message)):
        kernel[given]


def test_integers_and_dtypes_as_template_arguments(write: Any) -> None:
    path = write("template <int SIZE, class T, class INDEX> __global__ void t(T* y, INDEX n) {}")
    kernel = Kernel(path, "t", SIZE=(4, 32), T=FLOATS, INDEX=(np.uint8, np.int64))
    assert [kernel[4, np.float64, np.uint8].expression, kernel[32, np.float32, np.int64].expression] == [
        "t<4, double, unsigned char>",
        "t<32, float, long long>",
    ]
    assert len(kernel.unit("t<32, float, long long>")) == 4


def test_a_launcher_s_source_lies_beside_it_under_the_folder_s_name(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "scale" / "cuda.py", "scale_v1_plain", T=FLOATS)
    try:
        assert kernel.path == tmp_path / "scale" / "scale.cu"
        assert _launch.KERNELS[kernel.path, "scale_v1_plain"] is kernel
        assert repr(kernel) == "<Kernel scale_v1_plain of scale.cu>"
    finally:
        del _launch.KERNELS[kernel.path, "scale_v1_plain"]


# ---- which runtime, and small things


def test_arrays_of_the_host_have_no_runtime() -> None:
    with pytest.raises(DeviceError, match="CUDA kernels take arrays on device 'cuda'; got one on 'cpu'"):
        _launch.runtime_of(np.zeros(3))
    with pytest.raises(DeviceError, match=r"expected an array of a known device, got builtins\.list"):
        _launch.runtime_of([1.0])


def test_workspaces_and_results(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(empty=lambda shape, dtype: np.empty(shape, dtype).view(FakeArray))
    monkeypatch.setitem(_devices._by_type, FakeArray, Device("cuda", FakeArray, module))
    like = on_device(np.zeros(3, np.float32))
    made, labels = _launch.empty(like, (2, 0)), _launch.empty(like, 5, np.int32)
    assert (type(made), made.shape, made.dtype) == (FakeArray, (2, 0), np.float32)
    assert (labels.shape, labels.dtype) == ((5,), np.int32)
    assert _launch.result(like, labels, (7,)) is like
    assert _launch.result(None, like, (7,), np.float64).dtype == np.float64
    assert [_launch.ceil_div(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert _launch.architecture(like) == 80 and _launch.multiprocessors(like) == 7


# ---- faults


class Told(Exception):
    """What a watch says."""


def told(name: str) -> Callable[[int], Exception]:
    return lambda position: Told(f"{name} at {position}")


def test_a_flag_says_no_fault_and_is_used_again(runtime: FakeRuntime) -> None:
    like = on_device(np.zeros(3, np.float32))
    flag = fault_flag(like)
    assert (type(flag), flag.dtype, flag.tolist()) == (FakeArray, np.int64, [NO_FAULT])
    watch(flag, told("a"))
    assert fault_flag(like) is not flag, "it is still watched"
    check_faults(FakeArray)
    assert fault_flag(like) is flag
    check_faults(FakeArray)  # nothing is watched any more


def test_a_synchronous_runtime_tells_at_once(runtime: FakeRuntime) -> None:
    runtime.synchronous = True
    like = on_device(np.zeros(1))
    good, bad = fault_flag(like), fault_flag(like)
    watch(good, told("good"))
    bad[0] = 17
    with pytest.raises(Told, match="bad at 17"):
        watch(bad, told("bad"))
    assert fault_flag(like) is good
    assert fault_flag(like) is not bad, "a lowered flag is not used again"


def test_a_fault_waits_for_the_next_check_and_the_oldest_is_told(runtime: FakeRuntime) -> None:
    like = on_device(np.zeros(1))
    flags = [fault_flag(like) for _ in range(4)]
    for name, flag in zip("abcd", flags, strict=True):
        watch(flag, told(name))
    flags[2][0], flags[1][0] = 3, 0
    with pytest.raises(Told, match="b at 0"):
        check_faults(FakeArray)
    assert runtime.waits == 1, "all flags come in one copy"
    check_faults(FakeArray)  # the rest is consequence, and told no more
    again = [fault_flag(like) for _ in range(3)]
    assert again[0] is flags[3] and again[1] is flags[0], "those that were not lowered are used again"
    assert all(again[2] is not flag for flag in flags)


def test_a_check_looks_at_its_own_stream_or_at_all(runtime: FakeRuntime) -> None:
    like = on_device(np.zeros(1))
    for stream in (1, 2, 3):
        runtime.current = stream
        flag = fault_flag(like)
        flag[0] = stream
        watch(flag, told("stream"))
    runtime.current = 2
    with pytest.raises(Told, match="stream at 2"):
        check_faults(FakeArray)
    check_faults(FakeArray)
    with pytest.raises(Told, match="stream at 1"):
        check_faults(FakeArray, every_stream=True)
    with pytest.raises(Told, match="stream at 3"):
        check_faults(FakeArray, every_stream=True)
    check_faults(FakeArray, every_stream=True)


def test_unchecked_launches_do_not_pile_up(runtime: FakeRuntime) -> None:
    like = on_device(np.zeros(1))
    bad = fault_flag(like)
    bad[0] = 5
    watch(bad, told("first"))
    for _ in range(_faults._MAX_WATCHED - 1):
        watch(fault_flag(like), told("later"))
    assert runtime.waits == 0
    with pytest.raises(Told, match="first at 5"):
        watch(fault_flag(like), told("last"))


def test_a_source_may_have_any_suffix_but_python_s(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write("__global__ void f(float* x) {}", "kernel.cuda")
    assert Kernel(source, "f").source.signatures.keys() == {"f"}
    assert Kernel(tmp_path / "cuda.py", "f").path == tmp_path / f"{tmp_path.name}.cu"
