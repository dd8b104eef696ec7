"""Every shipped kernel compiles for every architecture it is declared for, and spills no registers.

NVRTC needs no GPU.  What was compiled once is kept in the cache folder, so only the first run takes long.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from rawgrad.kernels import _launch
from rawgrad.kernels._cuda import nvrtc, table
from rawgrad.kernels._cuda.nvrtc import Compiled, Nvrtc, Resources
from rawgrad.kernels._cuda.source import read_source
from rawgrad.kernels._errors import LaunchError
from rawgrad.kernels._launch import FLOATS, Kernel

KERNELS = table.shipped_kernels()
PAGE = Path(__file__).parents[2] / "docs" / "compile-table.md"

pytestmark = pytest.mark.skipif(nvrtc.find() is None, reason=f"cannot compile: {nvrtc.problem()}")
Results = dict[table.Work, "Future[Compiled]"]
RESULTS: Results = {}


def begin_ahead(items: list[pytest.Item], pool: ThreadPoolExecutor) -> None:
    """Compile all that the selected tests will ask for, in processes: other tests measure the memory of this one."""
    wanted = {item.callspec.params["kernel"]: None for item in items if "results" in item.fixturenames}
    if not wanted or nvrtc.find() is None:
        return
    processes = ProcessPoolExecutor(pool._max_workers, multiprocessing.get_context("spawn"))
    for work in table.works(wanted):
        what = work.kernel.path, work.expressions, work.architecture
        RESULTS[work] = pool.submit(lambda *given: processes.submit(table.compiled_here, *given).result(), *what)


@pytest.fixture(scope="session")
def library() -> Nvrtc:
    return nvrtc.required()


@pytest.fixture
def results() -> Results:
    return RESULTS


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_every_instance_compiles_for_every_architecture(kernel: Kernel, results: Results) -> None:
    wrong = []
    for work in table.works([kernel]):
        try:
            made = results[work].result()
        except LaunchError as error:
            wrong.append(str(error))
            continue
        assert set(made.names) == set(made.resources) == set(work.expressions)
        assert made.cubin.startswith(b"\x7fELF")
        for expression, resources in made.resources.items():
            assert resources.registers > 0
            if resources.spills:
                wrong.append(
                    f"{expression} spills for {work.architecture}: {resources.spill_stores} bytes written, "
                    f"{resources.spill_loads} read, with {resources.registers} registers"
                )
            limits = table.LIMITS[work.architecture.removesuffix("a")]
            if resources.shared_bytes > min(limits.shared_bytes_of_block, 48 * 1024):
                wrong.append(f"{expression} takes {resources.shared_bytes} bytes of static shared memory")
        wrong += [f"{kernel.name}, {work.architecture}: {text}" for text in made.warnings]
    assert not wrong, "\n".join(wrong)


HINT = "python -m rawgrad.kernels._cuda.table docs/compile-table.md writes it anew"


def test_the_page_is_of_these_kernels() -> None:
    """docs/compile-table.md has every instance of every kernel, and was written from these sources."""
    text = PAGE.read_text()
    lines = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    instances = {instance.expression for kernel in KERNELS for instance in kernel.instances()}
    assert lines == instances, f"not in {PAGE.name}: {instances - lines}; gone: {lines - instances}; {HINT}"
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    paths = {kernel.path.stem: kernel.path for kernel in KERNELS}
    stale = [stem for stem, path in paths.items() if table.source_line(path) not in sections[stem]]
    assert sections.keys() == paths.keys() and not stale, f"{stale} changed; {HINT}"


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_the_pages_numbers_are_those_of_the_compiler(kernel: Kernel, library: Nvrtc, results: Results) -> None:
    """But for the registers, which depend on the addresses of the compiler's memory: ptxas makes one of two codes."""
    page = PAGE.read_text()
    if table.version_in(page) != str(library):
        pytest.skip(f"{PAGE.name} was written with {table.version_in(page)}; here is {library}")

    def cells(text: str) -> dict[str, dict[str, str]]:
        found, columns = {}, []
        for line in text.splitlines():
            values = [value.strip() for value in line.strip("|").split("|")]
            if line.startswith("| instance"):
                columns = values
            elif line.startswith("| `"):
                row = {column: value for column, value in zip(columns, values, strict=True) if value}
                found[values[0]] = {c: re.sub(r"^\d+", "", v) if c.startswith("sm_") else v for c, v in row.items()}
        return found

    made = {work: results[work].result() for work in table.works([kernel])}
    found, written = cells(table.document(library, made)), cells(page)
    stale = [f"{name}: {of}; the page has {written.get(name)}" for name, of in found.items() if of != written.get(name)]
    assert found and not stale, "\n".join([*stale, HINT])


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Where a test writes a source of its own."""
    yield tmp_path / "own.cu"
    for key in [key for key in _launch.KERNELS if key[0].is_relative_to(tmp_path)]:
        del _launch.KERNELS[key]


def test_names_and_resources_belong_to_their_instances(library: Nvrtc, source: Path) -> None:
    source.write_text(
        '#include "common.cuh"\n'
        "template <class T, int N> __global__ void __launch_bounds__(32 * N, 2) turn(T* y) {\n"
        "  __shared__ T s[32 * N];\n"
        "  s[threadIdx.x] = y[threadIdx.x]; __syncthreads(); y[threadIdx.x] = s[32 * N - 1 - threadIdx.x]; }\n"
        "__global__ void plain(int* y) { y[0] = 1; }\n"
        "template <class T> __global__ void __launch_bounds__(64) large(T* y) {\n"
        "  struct Shared { T of[20000]; }; Shared& s = block_shared<Shared>();\n"
        "  s.of[threadIdx.x] = y[threadIdx.x]; __syncthreads(); y[threadIdx.x] = s.of[63 - threadIdx.x]; }\n"
    )
    names = ["turn<float, 4>", "turn<double, 2>", "plain"]
    made = library.compile(source, names, "sm_90")
    assert len(set(made.names.values())) == 3 and all(name.encode() in made.cubin for name in made.names.values())
    small, other, plain = (made.resources[name] for name in names)
    large = library.compile(source, ["large<float>"], "sm_90").resources["large<float>"]
    assert (small.shared_bytes, small.max_threads) == (4 * 128, 128)
    assert (other.shared_bytes, other.max_threads) == (8 * 64, 64)
    assert (plain.shared_bytes, plain.max_threads, plain.dynamic_shared) == (0, 0, False)
    assert (large.shared_bytes, large.max_threads, large.dynamic_shared) == (0, 64, True)
    assert not small.dynamic_shared and not small.spills and made.warnings == ()


def test_a_spill_is_seen(library: Nvrtc, source: Path) -> None:
    """128 sums in flight do not fit into the 64 registers that 1024 threads of a block leave to each."""
    source.write_text(
        "__global__ void __launch_bounds__(1024) greedy(const float* x, float* y, int n) {\n"
        "  float sum[128] = {};\n"
        "  for (int i = 0; i < n; ++i)\n"
        "#pragma unroll\n    for (int j = 0; j < 128; ++j) sum[j] += x[i + j] * sum[127 - j];\n"
        "#pragma unroll\n  for (int j = 0; j < 128; ++j) y[j] = sum[j];\n}\n"
    )
    resources = library.compile(source, ["greedy"], "sm_80").resources["greedy"]
    assert resources.spills and resources.spill_stores > 100 and resources.registers == 64


PLANTED = Path(__file__).parent / "planted"


@pytest.mark.parametrize("name", ["mbarriers", "bulk", "wgmma", "clusters"])
def test_what_hopper_added_compiles(library: Nvrtc, name: str) -> None:
    """The planted kernels, faults and all; what ptxas advises is about the faults."""
    path = PLANTED / f"{name}.cu"
    names = [f"{name}<8>" if of.templates else name for name, of in read_source(path).signatures.items()]
    made = library.compile(path, names, "sm_90a")
    assert not any(resources.spills for resources in made.resources.values())
    assert all("without_begin" in text for text in made.warnings), made.warnings


def test_every_product_of_a_warpgroup_compiles(library: Nvrtc, source: Path) -> None:
    """For tf32, bf16 and fp16, and 64, 128 and 256 columns; none is serialised by ptxas, which would be a warning."""
    text = '#include "tma.cuh"\n#include "wgmma.cuh"\n'
    names = []
    for kind in ("Tf32", "Bf16", "Fp16"):
        for columns in (64, 128, 256):
            names.append(f"{kind.lower()}_{columns}")
            text += (
                f"__global__ void __launch_bounds__(128) {names[-1]}(float* y) {{\n"
                "  struct Shared { alignas(1024) float a[64][32], b[256][32]; Barrier barrier; };\n"
                f"  Shared& s = block_shared<Shared>();\n  float d[{columns // 2}] = {{}};\n"
                "  const uint64_t a = matrix_descriptor<128>(s.a), b = matrix_descriptor<128>(s.b);\n"
                "  begin_products();\n  for (int k = 0; k < 128; k += 32)\n"
                f"    multiply_group({kind}(), d, further(a, k), further(b, k), true);\n"
                "  commit_products();\n  wait_products<0>(d);\n"
                f"  for (int i = 0; i < {columns // 2}; ++i) y[i * 128 + threadIdx.x] = d[i];\n}}\n"
            )
    source.write_text(text)
    made = library.compile(source, names, "sm_90a")
    assert made.warnings == () and not any(resources.spills for resources in made.resources.values())
    with pytest.raises(LaunchError, match="own.cu does not compile for sm_90 by NVRTC"):
        library.compile(source, names[:1], "sm_90")


@pytest.mark.parametrize("instance", ["<float>", "<double>"])
def test_an_error_shows_file_line_and_text(library: Nvrtc, source: Path, instance: str) -> None:
    source.write_text(
        '#include "vector.cuh"\n\ntemplate <class T>\n__global__ void wrong(T* y) { y[0] = undeclared; }\n'
    )
    with pytest.raises(LaunchError) as raised:
        library.compile(source, [f"wrong{instance}"], "sm_80")
    text = str(raised.value)
    assert f"{source} does not compile for sm_80 by NVRTC" in text
    assert f'{source}(4): error: identifier "undeclared" is undefined' in text
    assert "__global__ void wrong(T* y) { y[0] = undeclared; }" in text and "ptxas info" not in text


def test_an_architecture_that_does_not_exist_is_an_error(library: Nvrtc, source: Path) -> None:
    source.write_text("__global__ void plain(int* y) { y[0] = 1; }\n")
    with pytest.raises(LaunchError, match=r"own.cu does not compile for sm_12345 by NVRTC[\s\S]*arch"):
        library.compile(source, ["plain"], "sm_12345")


def test_warnings_are_kept_and_left_out_of_errors() -> None:
    log = (
        'a.cu(3): warning #177-D: variable "x" was declared but never referenced\n'
        "    int x;\n"
        "        ^\n\n"
        'Remark: The warnings can be suppressed with "-diag-suppress <warning-number>"\n\n'
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored.\n"
        "a.cu(9): error: no\n"
    )
    assert [text.partition(":")[0] for text in nvrtc._warnings(log)] == ["a.cu(3)", "ptxas info    "]
    assert str(nvrtc.compile_error(Path("a.cu"), "here", log)) == "a.cu does not compile here:\na.cu(9): error: no"


def test_compiled_code_is_kept_until_anything_changes(
    library: Nvrtc, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "cache_folder", lambda name: source.parent)
    source.write_text("template <class T> __global__ void plain(T* y) { y[0] = 1; }\n")
    first = nvrtc.compiled(library, source, ["plain<float>"], "sm_80")
    (kept,) = source.parent.glob("*.json")

    def refuse(*_: object) -> None:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr(Nvrtc, "compile", refuse)
    assert nvrtc.compiled(library, source, ["plain<float>"], "sm_80") == first
    for expression, architecture in (("plain<int>", "sm_80"), ("plain<float>", "sm_90")):
        with pytest.raises(AssertionError, match="again"):
            nvrtc.compiled(library, source, [expression], architecture)
    kept.write_text('{"cubin": ')  # damaged
    with pytest.raises(AssertionError, match="again"):
        nvrtc.compiled(library, source, ["plain<float>"], "sm_80")


def test_every_architecture_is_known_to_this_compiler(library: Nvrtc) -> None:
    known = library.architectures()
    assert [name for name in _launch.ARCHITECTURES if int(name.removeprefix("sm_")) not in known] == []


# From NVIDIA's occupancy calculator, filled in by hand: registers, shared bytes, threads -> blocks, warps.
@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "threads", "blocks", "warps"),
    [
        ("sm_80", 32, 0, 256, 8, 64),  # threads limit
        ("sm_80", 64, 0, 256, 4, 32),  # registers limit
        ("sm_80", 65, 0, 256, 3, 24),  # one more register is eight more
        ("sm_80", 32, 49152, 256, 3, 24),  # shared memory limits: 164 KB / (48 + 1)
        ("sm_86", 40, 0, 256, 6, 48),
        ("sm_86", 16, 0, 32, 16, 16),  # the number of blocks limits
        ("sm_89", 16, 0, 32, 24, 24),
        ("sm_90", 255, 0, 128, 2, 8),
        ("sm_100", 32, 49152, 128, 4, 16),  # 228 KB / (48 + 1)
        ("sm_90a", 168, 0, 384, 1, 12),
    ],
)
def test_occupancy(architecture: str, registers: int, shared: int, threads: int, blocks: int, warps: int) -> None:
    found = table.occupancy(Resources(registers, shared, 0, 0, 0), threads, architecture)
    assert (found.blocks, found.warps) == (blocks, warps)
    assert found.share == warps / table.LIMITS[architecture.removesuffix("a")].warps


def test_kernels_are_many_and_of_all_launchers() -> None:
    folders = {kernel.path.parent.name for kernel in KERNELS}
    launchers = {path.parent.name for path in (Path(_launch.__file__).parent).glob("*/cuda.py")}
    assert folders >= {"gemm", "conv2d", "max_pool2d", "softmax_cross_entropy"}
    assert folders == {name for name in launchers if (Path(_launch.__file__).parent / name / f"{name}.cu").exists()}


def test_floats_are_both_shipped() -> None:
    """A kernel over T comes in float32 and float64; gradient checks need the second."""
    for kernel in KERNELS:
        assert kernel.templates.get("T", FLOATS) == FLOATS, kernel.name
