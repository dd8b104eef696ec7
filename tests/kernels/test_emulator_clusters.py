"""Clusters on the emulator, proved as in test_emulator.py: by kernels with planted faults (planted/clusters.cu)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _planted import ORDERS, Case, Gpu, check, gpu_under, line, name_of, planted

from rawgrad.kernels import _launch
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._emulator.orders import FORWARD
from rawgrad.kernels._emulator.runtime import record_launches
from rawgrad.kernels._emulator.trial import Trial, choose_kernel
from rawgrad.kernels._errors import LaunchError
from rawgrad.kernels._launch import Kernel
from rawgrad.kernels._tensor_map import TensorMap

PROBLEM = BACKENDS["emulated"].problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=f"backend 'emulated' cannot run here: {PROBLEM}")


@pytest.fixture(params=ORDERS.values(), ids=ORDERS)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    yield from gpu_under(request.param)


@pytest.fixture
def one_order() -> Iterator[Gpu]:
    """For what has nothing to do with the order."""
    yield from gpu_under(FORWARD)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """Where a test writes a source of its own."""
    yield tmp_path / "own.cu"
    for key in [key for key in _launch.KERNELS if key[0].is_relative_to(tmp_path)]:
        del _launch.KERNELS[key]


def ints(n: int) -> Callable[[Gpu], Sequence[Any]]:
    """One empty output of n ints."""
    return lambda gpu: (gpu.empty(n, np.int32),)


def rows(n: int, of: int = 4) -> Callable[[Gpu], Sequence[Any]]:
    """0, 1, 2, … as boxes of ``of`` rows; and an empty output of n rows."""
    x = np.arange(8 * 32, dtype=np.float32).reshape(1, 8, 32)
    return lambda gpu: (TensorMap(gpu.array(x), (1, of, 32)), gpu.empty((n, 32)))


LANES = np.arange(32)
EIGHT_ROWS = np.arange(8 * 32).reshape(8, 32)
TWICE = np.tile(EIGHT_ROWS, (2, 1))
FIRST, SECOND = (0, 0, 0), (1, 0, 0)
(RACE, BARRIER, NEVER_WAITED, IN_FLIGHT, ABSENT) = (
    "race in shared memory",
    "barrier that not all threads reach",
    "asynchronous copy that is never waited for",
    "access to what an asynchronous copy has not delivered yet",
    "shared memory of a block that may not be running",
)
ELSEWHERE = "of shared memory of block (1, 0, 0)"

CASES = [
    Case(
        "clusters", "reads_a_peer", ints(64), (0, np.concatenate([100 + LANES[::-1], LANES[::-1]])), RACE, "byte ",
        [("OF A BLOCK", None, "writes"), ("BY ITS PEER", None, "reads")], grid=2, also=("read of what nothing wrote",),
    ),
    Case(
        "clusters", "arrives_before_it_writes", ints(64), (0, np.tile(LANES[::-1], 2)), RACE, "byte ",
        [("NOT COVERED", None, "writes"), ("NOT SEEN", None, "reads")], grid=2,
        also=("read of what nothing wrote", ABSENT),
    ),
    Case(
        "clusters", "begins_alone", ints(64), (0, np.tile(LANES[::-1], 2)), ABSENT, "nothing says that it has begun",
        [("TOO EARLY", None, "writes")], grid=2, also=("access outside every buffer",),
    ),
    Case(
        "clusters", "ends_alone", ints(64), (0, np.tile(LANES[::-1], 2)), ABSENT, "ended",
        [("TOO LATE", None, "reads")], grid=2,
    ),
    Case(
        "clusters", "asks_for_a_third", ints(64), (0, np.tile(LANES, 2)), ABSENT,
        "it asks for the block of rank 2; the cluster has 2", [("A THIRD", None, "")], grid=2,
    ),
    Case(
        "clusters", "one_stays_away", ints(64), (0, [1] * 64), BARRIER, "", [("ELSEWHERE", (7, 0, 0), "")],
        grid=2, blocks=[SECOND],
    ),
    Case(
        "clusters", "arrives_twice", ints(64), (0, [1] * 64), BARRIER, "arrived before, and has not waited since",
        [("TWICE", None, "")], grid=2,
    ),
    Case(
        "clusters", "waits_without_arriving", ints(64), (0, [1] * 64), BARRIER, "it waits without having arrived",
        [("UNARRIVED", None, "")], grid=2,
    ),
    Case(
        "clusters", "sees_its_own_block_alone", ints(64), (0, np.tile(LANES[::-1], 2)), RACE, "byte ",
        [("FROM A PEER", None, "writes"), ("SEEN TOO LITTLE", None, "reads")], grid=2, also=(ABSENT,),
    ),
    Case(
        "clusters", "arrives_at_the_departed", ints(64), (0, [1] * 64), ABSENT, "of shared memory of block (0, 0, 0)",
        [("LAST ARRIVAL", None, "updates atomically")], grid=2, blocks=[SECOND],
    ),
    Case(
        "clusters", "through_global_memory", ints(64), (0, np.tile(LANES[::-1], 2)), "race in global memory",
        "y (int32[64])", [("INTO GLOBAL MEMORY", None, "writes"), ("OUT OF GLOBAL MEMORY", None, "reads")], grid=2,
        also=("read of what nothing wrote",),
    ),
    Case(
        "clusters", "stores_what_a_peer_wrote", ints(64), (0, np.tile(LANES[::-1], 2)),
        "written by a thread, used by the asynchronous proxy without a fence between", "byte ",
        [("WRITTEN BY A PEER", None, "writes"), ("STORED UNFENCED", (0, 0, 0), "reads")], grid=2,
    ),
    Case(
        "clusters", "fetches_half", rows(16), (1, TWICE), IN_FLIGHT, "byte ",
        [("HALF", None, "reads"), ("EACH A HALF", (0, 0, 0), "")], grid=2, also=(NEVER_WAITED,),
    ),
    Case(
        "clusters", "fetches_before_the_other_is_ready", rows(16), (1, TWICE), ABSENT, "nothing says that it has begun",
        [("NOT READY", (0, 0, 0), "updates atomically")], grid=2,
        also=("mbarrier used against its rules", RACE, "access outside every buffer"),
    ),
    Case(
        "clusters", "fetches_over_a_reader", rows(16), (1, 2 * TWICE), RACE, "byte ",
        [("NEXT ROUND", (0, 0, 0), "writes")], grid=2, also=(IN_FLIGHT,),
    ),
    Case(
        "clusters", "fetches_for_the_departed", rows(2), (1, [LANES, LANES]), NEVER_WAITED,
        "to block (1, 0, 0), which ends", [("TO ONE WHO ENDS", (0, 0, 0), "")], grid=2, blocks=[FIRST], also=(ABSENT,),
    ),
    Case(
        "clusters", "fetches_for_a_third", rows(2), (1, [LANES, LANES]), ABSENT,
        "it goes to blocks of the bits 0x6; the cluster has 2", [("TO A THIRD", (0, 0, 0), "")], grid=2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_fault_is_found_and_its_absence_too(gpu: Gpu, case: Case) -> None:
    check(gpu, case)


def test_ranks_run_along_x_first(gpu: Gpu) -> None:
    """A grid of 6 x 4 blocks, in clusters of 2 x 2; thread 31 of each returns before the barrier."""
    y = gpu.empty((4, 6, 5), np.int32)
    assert gpu.findings("clusters", "ranks", (6, 4), 32, y) == ()
    for row, column in np.ndindex(4, 6):
        expected = [row % 2 * 2 + column % 2, 4, column // 2 * 2, row // 2 * 2, 1]
        assert y.get()[row, column].tolist() == expected


@pytest.mark.parametrize("size", [1, 8])
def test_a_sum_over_a_cluster(gpu: Gpu, size: int) -> None:
    """The size is a template parameter; 8 is the largest, 1 a block on its own."""
    x = np.random.default_rng(0).standard_normal(24).astype(np.float32)
    y = gpu.empty(24)
    kernel = planted("clusters", "sums", SIZE=(1, 8))
    kernel[size](24, 32, gpu.array(x), y)
    expected = [np.add.accumulate(part)[-1] for part in x.reshape(-1, size)]
    np.testing.assert_array_equal(y.get(), np.repeat(expected, size))


def test_a_block_without_a_cluster_is_one(gpu: Gpu) -> None:
    y = gpu.empty(32, np.int32)
    assert gpu.findings("clusters", "alone", 1, 32, y) == ()
    assert y.get().tolist() == (32 - LANES).tolist()


def test_a_variable_that_would_be_there_once_is_refused(one_order: Gpu) -> None:
    (finding,) = one_order.findings("clusters", "own_variable", 2, 32, one_order.empty(32, np.int32))
    assert "the emulator has a __shared__ variable once" in finding.text


def test_a_multicast_reads_global_memory_once(one_order: Gpu) -> None:
    """1,024 bytes arrive in both blocks, half of them fetched by each; both read them, and write 1,024 to y."""
    with record_launches() as launches:
        assert one_order.findings("clusters", "fetches_half", 2, 32, *rows(16)(one_order), 1) == ()
    (traffic,) = (launch.traffic for launch in launches)
    assert (traffic.global_read, traffic.distinct_read, traffic.global_written) == (1024, 1024, 2048)
    assert traffic.shared_read >= 2048 and traffic.shared_written >= 2048


def test_a_race_names_the_block_that_owns_the_memory(one_order: Gpu) -> None:
    found = one_order.findings("clusters", "reads_a_peer", 2, 32, one_order.empty(64, np.int32), 0)
    races = [finding for finding in found if finding.kind == RACE]
    assert any(ELSEWHERE in finding.text and line("clusters", "BY ITS PEER") in finding.text for finding in races)


@pytest.mark.parametrize(
    ("declared", "grid", "message"),
    [
        ("2, 1, 1", 3, r"k: grid \(3, 1, 1\) is no multiple of its cluster \(2, 1, 1\)"),
        ("1, 2", (4, 3), r"k: grid \(4, 3, 1\) is no multiple of its cluster \(1, 2, 1\)"),
        ("4, 4, 1", 4, r"k: a cluster has at most 8 blocks; got \[4, 4, 1\]"),
        ("SIDE, 1, 1", 2, r"k: __cluster_dims__\(SIDE, 1, 1\) must have one to three sides"),
        ("0", 2, "must have one to three sides"),
    ],
)
def test_a_grid_or_a_cluster_that_cannot_be_is_refused(
    one_order: Gpu, source: Path, declared: str, grid: Any, message: str
) -> None:
    source.write_text(
        f'#include "common.cuh"\nconstexpr int SIDE = 2;\n__global__ void __cluster_dims__({declared}) k(int* y) {{}}\n'
    )
    with pytest.raises(LaunchError, match=message):
        Kernel(source, "k")(grid, 32, one_order.empty(1, np.int32))


# 1000 elements are four blocks of 256, and five of 200, which are three clusters of two.
@pytest.mark.parametrize(
    ("declared", "threads", "grid"),
    [("2", 256, (4,)), ("2", 200, (6,)), ("2, 2", 256, (2, 2, 1)), ("1, 1, 4", 100, (3, 1, 4))],
)
def test_a_trial_is_of_whole_clusters(one_order: Gpu, source: Path, declared: str, threads: int, grid: Any) -> None:
    source.write_text(
        f'#include "cluster.cuh"\n__global__ void __cluster_dims__({declared}) __launch_bounds__({threads})\n'
        "k(int* y, int n) {\n"
        "  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;\n"
        "  const int i = block * blockDim.x + threadIdx.x;\n"
        "  if (i < n) y[i] = cluster_size();\n}\n"
    )
    trial = Trial.prepare(choose_kernel(source, None), [])
    assert trial.grid == grid
    outcome = trial.run()
    assert not outcome.findings and not outcome.unfinished
