"""``rawgrad emulate``: users' files as they are, faults found, and wrong usage."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rawgrad.__main__ import main
from rawgrad.kernels._dispatch import BACKENDS

Capture = pytest.CaptureFixture[str]
PROBLEM = BACKENDS["emulated"].problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"backend 'emulated' cannot run here: {PROBLEM}")

SCALE = """
__global__ void scale(const float* x, float* y, float by, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = by * x[i];
}
"""

# As in a tutorial: CUDA's headers, a macro that checks calls, a timer class, host functions, main.
TUTORIAL = r"""
#include <cuda_runtime.h>
#include "device_launch_parameters.h"
#include <cstdio>
#include <cstdlib>
#include <vector>

#define TILE 16
#define CHECK(call)                                                       \
  do {                                                                    \
    cudaError_t error = (call);                                           \
    if (error != cudaSuccess) {                                           \
      fprintf(stderr, "%s { (\n", cudaGetErrorString(error));             \
      exit(1);                                                            \
    }                                                                     \
  } while (0)

struct Timer {
  cudaEvent_t start, stop;
  Timer() { cudaEventCreate(&start); }
};

constexpr int blocks(int n) { return (n + TILE - 1) / TILE; }
static const char* brace = "}{ <<< // no comment";

namespace kernels {
template <class T> __device__ inline T twice(T x) { return x + x; }
}  // namespace kernels

/* y = 2 x^T, by tiles */
__global__ void transpose(const float* __restrict__ x, float* y, int rows, int columns) {
  __shared__ float tile[TILE][TILE + 1];
  int r = blockIdx.y * TILE + threadIdx.y, c = blockIdx.x * TILE + threadIdx.x;
  if (r < rows && c < columns) tile[threadIdx.y][threadIdx.x] = x[r * columns + c];
  __syncthreads();
  r = blockIdx.y * TILE + threadIdx.x, c = blockIdx.x * TILE + threadIdx.y;
  if (r < rows && c < columns) y[c * rows + r] = kernels::twice(tile[threadIdx.x][threadIdx.y]);
}

float* upload(const std::vector<float>& host) {
  float* device;
  CHECK(cudaMalloc(&device, host.size() * sizeof(float)));
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  return device;
}

void run(int rows, int columns) {
  float *x = upload(std::vector<float>(rows * columns)), *y = upload(std::vector<float>(rows * columns));
  Timer timer;
  dim3 grid(blocks(columns), blocks(rows)), block(TILE, TILE);
  transpose<<<grid, block>>>(x, y, rows, columns);
}

int main(int argc, char** argv) {
  run(100, 50);
  return 0;
}
"""

# Dynamic shared memory, warp functions, atomics, and a template.
SUMS = r"""
template <typename T, int WARPS, bool SQUARED>
__global__ void __launch_bounds__(32 * WARPS) sums(const T* x, T* y, unsigned* count, size_t n) {
  extern __shared__ __align__(sizeof(double)) unsigned char memory[];
  T* of_warp = reinterpret_cast<T*>(memory);
  T sum = 0;
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    sum += SQUARED ? x[i] * x[i] : x[i];
    if (x[i] > 0) atomicAdd(count, 1u);
  }
  for (int d = 16; d > 0; d >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, d);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < WARPS; ++w) sum += of_warp[w];
    y[blockIdx.x] = sum;
  }
}
"""


@pytest.fixture
def file(tmp_path: Path):
    """Write a source; gives its path as the command takes it."""

    def write(text: str, name: str = "user.cu") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def said(capsys: Capture, code: int, *arguments: str) -> str:
    """Run ``rawgrad emulate`` and give what it prints."""
    assert main(["emulate", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: Capture, *arguments: str) -> str:
    """What is said to wrong usage: one error on stderr, code 2."""
    assert main(["emulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rawgrad: error: ")
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("rawgrad: error: ").rstrip("\n")


def test_a_kernel_with_nothing_said_but_what_must_be(file, capsys: Capture) -> None:
    out = said(capsys, 0, file(SCALE), "--arg", "by=2.5")
    assert out.splitlines()[:7] == [
        "scale, grid (4,), block (256,)",
        "  x = random float32[1000]",
        "  y = empty float32[1000]",
        "  by = 2.5",
        "  n = 1000",
        "",
        out.splitlines()[6],
    ]
    assert out.splitlines()[6].startswith("no findings in 3 orders of threads, ")
    assert "global memory, read              4,000         4,000   1.0 times each" in out


def test_results_are_printed_and_saved(file, capsys: Capture, tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    saved = tmp_path / "y.npy"
    arguments = ["--arg", "by=2", "--arg", "n=12", "--arg", f"x={tmp_path / 'x.npy'}", "--arg", "y=empty:float32[3, 4]"]
    out = said(capsys, 0, file(SCALE), *arguments, "--out", "y", "--out", f"y={saved}", "--block", "8", "--orders", "1")
    assert "grid (2,), block (8,)" in out
    assert "no findings in one order of threads" in out
    np.testing.assert_array_equal(np.load(saved), 2 * x)
    out = said(capsys, 0, file(SCALE), *arguments, "--out", "y")
    assert "y =\n[[ 0.  2.  4.  6.]\n [ 8. 10. 12. 14.]\n [16. 18. 20. 22.]]" in out


def test_a_fault_gives_code_1_with_the_line_and_its_text(file, capsys: Capture) -> None:
    path = file(SCALE.replace("i < n", "i <= n"))
    out = said(capsys, 1, path, "--arg", "by=1", "--arg", "n=100")
    assert "1 finding in 3 orders of threads" in out
    assert "access outside every buffer: x (float32[100]), element 100, 0 bytes behind its end" in out
    assert f"thread (100, 0, 0) of block (0, 0, 0) reads 4 bytes at {path}:4  if (i <= n) y[i] = by * x[i];" in out
    assert "bytes until the fault" in out


def test_what_nothing_wrote_is_said(file, capsys: Capture) -> None:
    out = said(capsys, 0, file(SCALE), "--arg", "by=1", "--arg", "n=90", "--arg", "x=[100]", "--arg", "y=empty:[100]",
               "--out", "y")  # fmt: skip
    assert "but nothing has written y[90]" in out
    assert "y is not shown: nothing has written its element [90]" in out


def test_a_tutorials_file_runs_as_it_is(file, capsys: Capture) -> None:
    arguments = ["--grid", "4,7", "--block", "16,16", "--arg", "rows=100", "--arg", "columns=50"]
    arguments += ["--arg", "x=[rows, columns]", "--arg", "y=empty:[columns,rows]"]
    out = said(capsys, 0, file(TUTORIAL), *arguments)
    assert "x = random float32[100, 50]" in out
    assert "shared memory, written          20,000" in out
    broken = TUTORIAL.replace("  __syncthreads();\n", "")
    path = file(broken)
    out = said(capsys, 1, path, *arguments)
    assert "race in shared memory: shared variable tile, byte" in out
    line = next(i for i, text in enumerate(broken.splitlines(), 1) if "tile[threadIdx.y]" in text)
    assert f"{path}:{line}  if (r < rows && c < columns) tile[threadIdx.y][threadIdx.x] = x[r * columns + c];" in out


def test_a_template_with_dynamic_shared_memory(file, capsys: Capture, tmp_path: Path) -> None:
    saved, counted = tmp_path / "y.npy", tmp_path / "count.npy"
    arguments = ["--arg", "n=1000", "--arg", "x=arange:[n]", "--arg", "y=empty:[3]", "--arg", "count=zeros:1"]
    arguments += ["--grid", "3", "--shared", "32", "--out", f"y={saved}", "--out", f"count={counted}"]
    out = said(capsys, 0, file(SUMS), "--kernel", "sums<double, 4>", *arguments)
    assert "sums<double, 4, false>, grid (3,), block (128,)" in out
    assert "atomics                            999" in out
    assert np.load(saved).sum() == 999 * 500
    assert np.load(counted).tolist() == [999]
    out = said(capsys, 0, file(SUMS), "--kernel", "sums<float, 2, true>", *arguments)
    assert "block (64,)" in out
    assert np.load(saved).sum() == np.float32(sum(i * i for i in range(1000)))
    out = said(capsys, 1, file(SUMS), "--kernel", "sums<double, 8>", *arguments, "--orders", "1")
    assert "byte 32 of shared memory, of which the block has 32 bytes" in out


def test_a_dependence_on_the_order_is_a_finding(file, capsys: Capture) -> None:
    path = file("__global__ void total(const float* x, float* y, int n) { atomicAdd(y, x[threadIdx.x]); }")
    arguments = ["--arg", "y=zeros:1", "--grid", "1", "--arg", "n=256"]
    out = said(capsys, 1, path, *arguments)
    assert "result that depends on the order of threads: y (float32[1]), element 0" in out
    assert "when threads run forward" in out
    assert "no findings" in said(capsys, 0, path, *arguments, "--orders", "1")


def test_arguments_of_every_kind(file, capsys: Capture) -> None:
    path = file("""
struct Size { int rows, columns; };
__global__ void kinds(const double* x, const long long* labels, unsigned char* bytes, const float* bias, float4* four,
                      Size size, bool flag, unsigned char small, int* y) {
  y[0] = size.rows * 100 + size.columns;
  y[1] = flag;
  y[2] = small;
  y[3] = bias == nullptr;
  y[4] = x[2] * 4;
  y[5] = labels[1];
  y[6] = bytes[3] + four[1].y;
}
""")
    arguments = ["x=values:0.5, 1, 1.5", "labels=values:7,8", "bytes=ones:uint8[4]", "bias=null", "size=(3, 4)",
                 "flag=true", "small=0x10", "y=empty:int32[7]", "four=ones:[2,4]"]  # fmt: skip
    out = said(capsys, 0, path, *(f"--arg={text}" for text in arguments), "--out", "y", "--block", "1", "--grid", "1")
    assert "y =\n[304   1  16   1   6   8   2]" in out


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (SCALE, ["--kernel", "scal"], "has no kernel 'scal' (did you mean scale?); it has scale"),
        (SCALE + SUMS, [], "user.cu has the kernels scale, sums; choose one by --kernel"),
        (SCALE, [], "argument by (float) is not given: --arg by=1.0"),
        (SCALE, ["--arg", "by"], "--arg takes NAME=VALUE; got 'by'"),
        (SCALE, ["--arg", "bye=3"], "scale has no argument 'bye' (did you mean by?); it takes x, y, by, n"),
        (SCALE, ["--arg", "by=3", "--arg", "by=4"], "argument by is given twice"),
        (SCALE, ["--arg", "by=much"], "argument by is a float; got 'much'"),
        (SCALE, ["--arg", "by=1", "--arg", "n=1.5"], "argument n is a int; got '1.5'"),
        (SCALE, ["--arg", "by=1", "--arg", "x=ramp:[8]"], "argument x is an array of float32: give [1000], [n, 3],"),
        (SCALE, ["--arg", "by=1", "--arg", "x=float7[8]"], "argument x: 'float7' is no dtype"),
        (SCALE, ["--arg", "by=1", "--arg", "x=[m]"], "argument x: 'm' is neither a size nor an integer argument"),
        (SCALE, ["--arg", "by=1", "--arg", "x=values:a"], "argument x: values: takes numbers; got 'values:a'"),
        (SCALE, ["--arg", "by=1", "--arg", "x=nowhere.npy"], "nowhere.npy is no array that NumPy can read"),
        (SCALE, ["--arg", "by=1", "--arg", "x=float64[1000]"], "scale: x must be float32; got float64"),
        (SCALE, ["--arg", "by=1", "--arg", "n=3000000000"], "scale: n must be a number that fits int32"),
        (SCALE, ["--arg", "by=1", "--grid", "4;4"], "--grid takes X, X,Y or X,Y,Z; got '4;4'"),
        (SCALE, ["--arg", "by=1", "--block", "16,16"], "a block of several dimensions needs --grid too"),
        (SCALE, ["--arg", "by=1", "--block", "2048"], "scale: block (2048, 1, 1) exceeds"),
        (SCALE, ["--arg", "by=1", "--out", "n"], "--out takes the name of an array (x, y); got 'n'"),
        (SCALE, ["--arg", "by=1", "--out", "y=y.txt"], "--out y=FILE saves a file .npy; got 'y.txt'"),
        (SCALE, ["--arg", "by=1", "--orders", "0"], "--orders must be from 1 to 100; got 0"),
        (SCALE, ["--arg", "by=1", "--order", "3"], "unknown option --order (did you mean --orders?)"),
        (TUTORIAL, [], "argument rows (int) is not given: --arg rows=1000"),
        (TUTORIAL, ["--arg", "rows=3", "--arg", "columns=4"], "the size of x is not given: --arg x=float32[1000]"),
        (SCALE.replace("void", "void __launch_bounds__(THREADS)"), ["--arg", "by=1"],
         "say --block; __launch_bounds__(THREADS) of scale is not understood"),
        (SUMS, [], "sums is a template; say its WARPS by --kernel 'sums<...>'"),
        (SUMS, ["--kernel", "sums<half, 4>"], "sums: template argument 'half' is neither a number nor one of float,"),
        (SUMS, ["--kernel", "sums<float, 4, true, 1>"], "sums has 3 template parameters; got float, 4, true, 1"),
        ("int main() { return 0; }", [], "has no __global__ function"),
        (SCALE.replace("by *", "bye *"), ["--arg", "by=1"], "user.cu:4:"),
        (SCALE.replace("y[i] =", "scale<<<1, 1>>>(x, y, by, n); y[i] ="), ["--arg", "by=1"],
         "user.cu:4: a kernel that launches another kernel cannot be emulated"),
        (SCALE.replace("float* x", "half* x"), ["--arg", "by=1"], "x points to 'half', which is no known type"),
    ],
)  # fmt: skip
def test_wrong_usage(file, capsys: Capture, text: str, arguments: list[str], message: str) -> None:
    assert message in refused(capsys, file(text), *arguments)


def test_no_such_file(capsys: Capture, tmp_path: Path) -> None:
    assert "there is no file" in refused(capsys, str(tmp_path / "nothing.cu"))
    assert "FILE.cu" in refused(capsys)


def test_without_a_compiler_it_says_so(file) -> None:
    environment = {**os.environ, "CXX": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "rawgrad", "emulate", file(SCALE), "--arg", "by=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "rawgrad: error: emulate: kernels cannot be run here: it needs a C++ compiler: /nonexistent, which the "
        "variable CXX names, was not found\n"
    )


def test_the_page_shows_what_the_command_prints(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/emulator.md: a file with two faults, then the same with four lines mended."""
    page = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
    wrong, mended = re.findall(r"```cuda\n(.*?)```", page, re.DOTALL)
    transcripts = re.findall(r"```\n\$ rawgrad (emulate .*?)\n(.*?)```", page, re.DOTALL)
    sources = [wrong, re.sub(r"  tile\[t\] = x\[i\];\n.*?(?=\}\n\nint main)", lambda _: mended, wrong, flags=re.DOTALL)]
    monkeypatch.chdir(tmp_path)
    assert len(transcripts) == len(sources)
    for (command, shown), source, code in zip(transcripts, sources, (1, 0), strict=True):
        (tmp_path / "smooth.cu").write_text(source)
        printed = said(capsys, code, *command.split()[1:])
        without_time = [re.sub(r"orders of threads, \S+ s", "", text) for text in (printed, shown)]
        assert without_time[0] == without_time[1]


def test_a_tensor_map_cannot_be_said_on_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "boxes.cu"
    path.write_text(
        '#include "tma.cuh"\n__global__ void boxes(const __grid_constant__ TensorMap x, float* y) { y[0] = 1; }\n'
    )
    assert main(["emulate", str(path), "--arg", "y=empty:[1]"]) == 2
    assert "argument x is a TensorMap; a kernel that takes one is launched from Python" in capsys.readouterr().err
