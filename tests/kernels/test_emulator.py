"""The emulator proves itself on small kernels with planted faults (planted/*.cu).

Each fault must be found under every order of threads, with kernel, block, thread, memory and source lines of
both parties; the same kernel with the fault mended must give no finding and the right result.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _planted import ORDERS, PLANTED, Case, Gpu, check, gpu_under, line, name_of, planted

from rawgrad.kernels import _launch
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._emulator import build
from rawgrad.kernels._emulator.findings import KINDS, ORDER_KIND
from rawgrad.kernels._emulator.host_code import device_code, shared_names
from rawgrad.kernels._emulator.orders import FORWARD, compare_orders
from rawgrad.kernels._emulator.runtime import record_launches
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


def ints(n: int) -> Callable[[Gpu], Sequence[Any]]:
    """One empty output of n ints."""
    return lambda gpu: (gpu.empty(n, np.int32),)


def floats(n: int, out: int | None = None) -> Callable[[Gpu], Sequence[Any]]:
    """0, 1, 2, …; and an empty output of as many, or of ``out``, floats."""
    return lambda gpu: (gpu.array(np.arange(n), np.float32), gpu.empty(n if out is None else out))


def int_input(values: Sequence[int]) -> Callable[[Gpu], Sequence[Any]]:
    return lambda gpu: (gpu.array(values, np.int32), gpu.empty(len(values), np.int32))


LANES = np.arange(32)
#: What planted/wgmma.cu gives: eight times the number of the column, from 1.
TIMES_8 = np.tile(8.0 * np.arange(1, 65), (64, 1))
RACE, GLOBAL_RACE = KINDS[0], KINDS[1]
ABSENT_BLOCK = KINDS[22]  # test_emulator_clusters.py

CASES = [
    Case(
        "races", "shared_between_warps", ints(1), (0, [7]), RACE, "shared variable box, byte 160",
        [("WRITE", (40, 0, 0), "writes"), ("READ", (3, 0, 0), "reads")], block=64,
    ),
    Case(
        "races", "shared_writes", ints(1), (0, [2]), RACE, "shared variable box, byte 0",
        [("FIRST", (1, 0, 0), "writes"), ("SECOND", (2, 0, 0), "writes")],
    ),
    Case(
        "races", "two_rounds", ints(64), (0, [3] * 64), RACE, "shared variable box, byte",
        [("PUT", None, "writes"), ("GET", None, "reads")], block=64,
    ),
    Case(
        "races", "between_lanes", ints(1), (0, [7]), RACE, "shared variable box, byte 20",
        [("LANE WRITE", (5, 0, 0), "writes"), ("LANE READ", (9, 0, 0), "reads")],
    ),
    Case("races", "shuffle_is_no_fence", ints(1), (0, [7]), RACE, "shared variable box, byte 20", []),
    Case(
        "races", "halves", ints(32), (0, np.where(LANES == 20, 3, LANES ^ 1)), RACE, "shared variable box, byte 12",
        [("HALVES", (20, 0, 0), "reads")],
    ),
    Case(
        "races", "through_a_third", ints(1), (0, [5]), RACE, "shared variable box, byte 124", [], also=[KINDS[6]]
    ),
    Case("races", "uneven_times", ints(32), (0, [3] * 32), RACE, "shared variable box, byte 0", []),
    Case(
        "races", "between_blocks", ints(3), (0, [0, 1, 2]), GLOBAL_RACE, "y (int32[3]), element 0",
        [("OWN", (0, 0, 0), "writes"), ("FOREIGN", (1, 0, 0), "writes")], grid=3, blocks=[(0, 0, 0), (2, 0, 0)],
    ),
    Case(
        "races", "many_read_one_writes",
        lambda gpu: (gpu.array([5] * 8, np.int32), gpu.empty(4, np.int32)),
        (1, [5] * 4), GLOBAL_RACE, "x (int32[8]), element 3",
        [("MANY", (0, 0, 0), "reads"), ("ONE", (0, 0, 0), "writes")], grid=4, block=1,
    ),
    Case(
        "races", "reads_a_neighbour", lambda gpu: (gpu.array([0] * 4, np.int32),), (0, [1] * 4), GLOBAL_RACE,
        "y (int32[4]), element", [("NEIGHBOUR WRITE", (0, 0, 0), "writes"), ("NEIGHBOUR READ", (0, 0, 0), "reads")],
        grid=2, block=1, blocks=[(0, 0, 0), (1, 0, 0)],
    ),
    Case(
        "races", "atomic_and_plain", ints(1), (0, [2]), RACE, "shared variable count, byte 0",
        [("ATOMIC", (33, 0, 0), "updates atomically"), ("PLAIN", (0, 0, 0), "reads")], block=64,
    ),
    Case("races", "reads_after_adding", ints(64), (0, [64] * 64), RACE, "shared variable count, byte 0", [], block=64),
    Case(
        "races", "reads_after_adding_in_blocks", lambda gpu: (gpu.array([0], np.int32), gpu.empty(4, np.int32)),
        (0, [4]), GLOBAL_RACE, "y (int32[1]), element 0", [], grid=4, block=1,
    ),
    Case(
        "races", "bytes_of_ints", lambda gpu: (gpu.array([0] * 8, np.int32),),
        (0, np.arange(32, dtype=np.uint8).view(np.int32)), GLOBAL_RACE, "y (int32[8]), element 2",
        [("BYTE", (9, 0, 0), "writes")],
    ),
    Case(
        "races", "wide_and_narrow", lambda gpu: (gpu.array([[0] * 4] * 2, np.float32),),
        (0, [[1, 2, 3, 4], [9, 0, 0, 0]]), GLOBAL_RACE, "y (float32[2, 4]), element",
        [("WIDE", (0, 0, 0), "writes"), ("NARROW", (1, 0, 0), "writes")],
    ),
    Case(
        "memory", "behind_the_end", lambda gpu: (*floats(100)(gpu), 100), (1, np.arange(100)), KINDS[2],
        "x (float32[100]), element 100, 0 bytes behind its end", [("END", (36, 0, 0), "reads")], grid=2, block=64,
        blocks=[(1, 0, 0)],
    ),
    Case(
        "memory", "before_the_begin", lambda gpu: (*floats(8)(gpu), 8), (1, [0, 0, 1, 2, 3, 4, 5, 6]), KINDS[2],
        "x (float32[8]), element -1, 4 bytes before its begin", [("BEGIN", (0, 0, 0), "reads")],
    ),
    Case(
        "memory", "half_outside", lambda gpu: (gpu.array([1, 1, 1], np.float32),), (0, [0, 0, 1]), KINDS[2],
        "y (float32[3]), element 2, of which 4 bytes lie behind its end", [("HALF", (0, 0, 0), "writes")], block=1,
    ),
    Case(
        "memory", "through_null", lambda gpu: (None, gpu.empty(32)), (1, [0] * 32), KINDS[2],
        "the null pointer", [("NULL", None, "reads")],
    ),
    Case(
        "memory", "anothers_variables", ints(32), (0, LANES + 5), KINDS[2],
        "the local variables of thread number 0 of the block", [("LOCAL", None, "reads")],
    ),
    Case(
        "memory", "beyond_a_tile", lambda gpu: (gpu.empty(8), 4), (0, [3] * 8), KINDS[3],
        "index 4 of an array of type 'float [4][8]'", [("TILE", None, "")], block=8,
    ),
    Case(
        "memory", "beyond_a_register", lambda gpu: (*floats(32)(gpu), 4), (1, 2 * LANES), KINDS[3],
        "index 4 of an array of type 'float [4]'", [("REGISTER", None, "")],
    ),
    Case(
        "memory", "misaligned_vector", floats(8, 4), (1, [4] * 4), KINDS[4], "x (float32[8]), element 1",
        [("VECTOR", None, "reads")], block=4,
    ),
    Case(
        "memory", "misaligned_shared", lambda gpu: (gpu.empty(64),), (0, [3] * 64), KINDS[4],
        "shared variable box, byte 4", [("PAIR", None, "reads")], block=64,
    ),
    Case(
        "memory", "writes_its_input", floats(32), (1, 2 * LANES), KINDS[5], "x (float32[32]), element 2",
        [("CONST", (2, 0, 0), "writes")],
    ),
    Case(
        "memory", "reads_its_output", lambda gpu: (gpu.empty((4, 8)),), (0, np.ones((4, 8))), KINDS[6],
        "y (float32[4, 8]), element", [("OUTPUT", None, "reads")],
    ),
    Case(
        "memory", "unfilled", lambda gpu: (gpu.array([1, 2, 3, 4, 5], np.float32), gpu.empty(8), 5), (1, [15] * 8),
        KINDS[6], "shared variable box, byte 20", [("FILL", None, "reads")], block=8,
    ),
    Case(
        "memory", "left_behind", ints(4), (0, [1] * 4), KINDS[6], "shared variable box, byte 0",
        [("LEFT", (0, 0, 0), "reads")], grid=4, block=1,
    ),
    Case(
        "memory", "copied_in_bulk", lambda gpu: (*floats(8)(gpu), 8), (1, np.arange(8)), KINDS[2],
        "x (float32[8]), element 0, of which 4 bytes lie behind its end",
        [("BULK", (0, 0, 0), "reads")], block=1,
    ),
    Case(
        "async", "reads_too_early", floats(64), (1, np.arange(64)), KINDS[7], "byte ",
        [("COPY", None, "writes"), ("EARLY", None, "reads")], block=64,
    ),
    Case(
        "async", "waits_for_the_other", floats(128), (1, np.arange(128)), KINDS[7], "byte ",
        [("SECOND COPY", None, "writes"), ("SECOND READ", None, "reads")], block=64,
    ),
    Case(
        "async", "no_barrier", floats(128, 32), (1, 127 - LANES), RACE, "byte ",
        [("OWN COPY", None, "writes"), ("FOREIGN", None, "reads")], also=[KINDS[6]],
    ),
    Case("async", "never_waits", floats(128, 64), (1, [1] * 64), KINDS[11], "copy of 8 bytes",
         [("LOST", None, "")], block=64),
    Case(
        "async", "overwrites", floats(128, 64), (1, 2 * (63 - np.arange(64)) + 64), RACE, "byte ",
        [("OLD", None, "reads"), ("NEW", None, "writes")], block=64, also=[KINDS[7]],
    ),
    Case(
        "async", "clears", floats(64), (1, [0] * 64), KINDS[7], "byte 0 of shared memory",
        [("INTO", (0, 0, 0), "writes"), ("CLEAR", (40, 0, 0), "writes")], block=64,
    ),
    Case(
        "async", "misaligned_copy", floats(132, 32), (1, 4 * LANES), KINDS[4], "x (float32[132]), element",
        [("CROOKED", None, "reads")],
    ),
    Case(
        "async", "into_a_variable", floats(64), (1, np.arange(64)), KINDS[7], "shared variable box, byte",
        [("VARIABLE", None, "reads")], block=64,
    ),
    Case(
        "async", "into_global_memory", floats(64), (1, np.arange(64)), KINDS[2],
        "cp.async takes shared memory alone", [("GLOBAL", None, "writes")], block=64,
    ),
    Case(
        "meetings", "returns_early", lambda gpu: (*int_input(range(50))(gpu), 50), (1, np.arange(50)[::-1]), KINDS[8],
        "waits in __syncthreads", [("EARLY", None, "")], block=64,
    ),
    Case(
        "meetings", "in_a_branch", ints(64), (0, [1] * 64), KINDS[8], "has returned, and 23 more elsewhere",
        [("BRANCH", (0, 0, 0), "")], block=64,
    ),
    Case(
        "meetings", "two_barriers", ints(64), (0, [1] * 64), KINDS[8], "and 31 more elsewhere",
        [("ONE BARRIER", (0, 0, 0), ""), ("OTHER BARRIER", (32, 0, 0), "")], block=64,
    ),
    Case(
        "meetings", "uneven_loop", ints(64), (0, [1] * 64), KINDS[8],
        "thread (0, 0, 0) of block (0, 0, 0) has returned", [("LOOP", None, "")], block=64,
    ),
    Case(
        "meetings", "half_a_warp", ints(32), (0, [496] * 32), KINDS[10], "in __shfl_xor_sync",
        [("HALF WARP", None, "")],
    ),
    Case(
        "meetings", "lanes_at_a_barrier", ints(32), (0, [1] * 32), KINDS[9], "waits in __syncwarp",
        [("LANE WARP", None, ""), ("LANE BARRIER", (7, 0, 0), "")],
    ),
    Case(
        "meetings", "not_in_its_mask", ints(32), (0, [0] * 32), KINDS[9],
        "its mask 0x7fffffff leaves out its own lane 31", [("MASK", (31, 0, 0), "")],
    ),
    Case(
        "meetings", "different_masks", ints(32), (0, [1] * 32), KINDS[9],
        "their masks are 0xffffffff and 0xffff0001", [("MASKS", None, "")],
    ),
    Case(
        "meetings", "absent_lane", ints(20), (0, np.minimum(np.arange(20) // 4 * 4 + 3, np.arange(20) + 1)), KINDS[10],
        "takes the value of lane 25 in __shfl_sync", [("ABSENT", None, "")], block=20,
    ),
    Case(
        "meetings", "excluded_lane", ints(8), (0, [7] * 8), KINDS[10], "which is not in the mask",
        [("EXCLUDED", None, "")],
    ),
    Case(
        "meetings", "returned_lane", ints(32), (0, [31] * 32), KINDS[10], "which has returned",
        [("RETURNED", None, "")],
    ),
    Case(
        "memory", "divides", int_input([1, 2, 0, 4]), (1, [100, 50, 0, 25]), KINDS[13], "division by zero",
        [("DIVIDE", (2, 0, 0), "")], block=4,
    ),
    Case(
        "memory", "shifts", int_input([1, 2, 32, 4]), (1, [2, 4, 0, 16]), KINDS[13], "shift of 'int' by 32 bits",
        [("SHIFT", (2, 0, 0), "")], block=4,
    ),
    Case(
        "memory", "converts",
        lambda gpu: (gpu.array([1.5, -2.5, 3e10, 7], np.float32), gpu.empty(4, np.int32)), (1, [1, -2, 100, 7]),
        KINDS[13], "conversion of 3e+10 to 'int', which cannot hold it", [("CONVERT", (2, 0, 0), "")], block=4,
    ),
    Case(
        "memory", "asserts", int_input([1, 2, 0, 4]), (1, [1, 2, 0, 4]), KINDS[14], "value > 0",
        [("ASSERT", (2, 0, 0), "")], block=4,
    ),
    Case("memory", "traps", ints(32), (0, [1] * 32), KINDS[14], "__trap()", [("TRAP", (3, 0, 0), "")]),
    Case("memory", "recursive", ints(32), (0, [10] * 32), KINDS[15], "more than the 131,072 bytes", []),
    Case(
        "tensor", "unordered_rows", lambda gpu: (gpu.empty(32, np.uint32),), (0, (LANES // 4 + 1) * 65537), RACE,
        "byte ", [("ROW WRITE", None, "writes"), ("ROW READ", None, "reads")], also=[KINDS[6]],
    ),
    Case(
        "tensor", "part_of_a_warp", lambda gpu: (gpu.array([2, 3], np.float32), gpu.empty(32)), (1, [24] * 32),
        KINDS[9], "waits in mma", [("PART", None, "")],
    ),
    Case(
        "mbarriers", "reads_without_waiting", ints(32), (0, 31 - LANES), RACE, "byte ",
        [("BEFORE ARRIVING", None, "writes"), ("AFTER WAITING", None, "reads")], block=64, also=[KINDS[6]],
    ),
    Case(
        "mbarriers", "arrives_too_early", ints(32), (0, 31 - LANES), RACE, "byte ",
        [("TOO LATE", None, "writes"), ("SEES TOO LITTLE", None, "reads")], block=64, also=[KINDS[6]],
    ),
    Case(
        "mbarriers", "through_others", ints(32), (0, 31 - LANES), RACE, "byte ",
        [("REUSE", None, "writes"), ("USE", None, "reads")], block=64,
    ),
    Case(
        "mbarriers", "too_few_arrivals", ints(32), (0, [1] * 32), KINDS[18],
        "in its phase 0 have come 31 of 32 arrivals; 0 of 0 expected bytes have landed", [("FOREVER", None, "")],
    ),
    Case(
        "mbarriers", "phase_run_over", ints(32), (0, [1] * 32), KINDS[18],
        "in its phase 2 have come 0 of 1 arrivals", [("RUN OVER", None, "")],
    ),
    Case(
        "mbarriers", "not_initialised", ints(32), (0, [1] * 32), KINDS[17], "nobody has initialised it",
        [("UNKNOWN", None, "")],
    ),
    Case(
        "mbarriers", "arrives_again", ints(32), (0, [1] * 32), KINDS[17],
        "it has all arrivals of this phase already, and waits for bytes", [("AGAIN", (0, 0, 0), "")],
    ),
    Case(
        "bulk", "reads_before_it_waits", floats(256, 32), (1, LANES), KINDS[7], "byte ",
        [("LOAD", (0, 0, 0), "writes"), ("UNDELIVERED", None, "reads")],
    ),
    Case(
        "bulk", "another_has_waited", floats(32), (1, LANES), RACE, "byte ",
        [("LOAD OF ANOTHER", (0, 0, 0), "writes"), ("READ OF ANOTHER", None, "reads")],
    ),
    Case(
        "bulk", "expects_too_much", floats(32), (1, LANES), KINDS[18],
        "in its phase 0 have come 1 of 1 arrivals; 128 of 144 expected bytes have landed", [("MORE", None, "")],
    ),
    Case(
        "bulk", "expects_too_little", floats(32), (1, LANES), KINDS[18], "64 more bytes have landed than expected",
        [("LESS", None, "")],
    ),
    Case(
        "bulk", "unannounced", floats(32), (1, LANES), KINDS[21], "no fence_barrier_init() came after it",
        [("UNANNOUNCED", (0, 0, 0), "")],
    ),
    Case(
        "bulk", "same_parity", floats(64, 32), (1, 2 * LANES + 32), KINDS[7], "byte ",
        [("ROUND", (0, 0, 0), "writes"), ("STALE", None, "reads")], also=[RACE, KINDS[6]],
    ),
    Case(
        "bulk", "loads_over_readers", floats(64, 32), (1, 2 * LANES + 32), RACE, "byte ",
        [("STILL READING", None, "reads"), ("NEXT LOAD", None, "writes")], also=[KINDS[7]],
    ),
    Case(
        "bulk", "loads_over_writers", floats(32), (1, LANES), KINDS[21], "byte 0",
        [("OVER WRITERS", (0, 0, 0), "writes"), ("UNDER THE COPY", None, "writes")],
    ),
    Case("bulk", "load_never_waited", floats(32), (1, [1] * 32), KINDS[11], "copy of 128 bytes",
         [("LOST LOAD", (0, 0, 0), "")]),
    Case("bulk", "misaligned_load", floats(32), (1, LANES), KINDS[4], "byte 4",
         [("CROOKED LOAD", (0, 0, 0), "writes")]),
    Case("bulk", "odd_bytes", floats(32), (1, LANES), KINDS[4], "multiples of 16 bytes; these are 120",
         [("ODD", (0, 0, 0), "writes")]),
    Case(
        "bulk", "stores_without_a_fence", lambda gpu: (gpu.empty(32),), (0, LANES), KINDS[21], "byte ",
        [("WRITTEN", None, "writes"), ("STORE", (0, 0, 0), "reads")],
    ),
    Case(
        "bulk", "fences_too_early", lambda gpu: (gpu.empty(32),), (0, LANES), KINDS[21], "byte ",
        [("WRITTEN AFTER", None, "writes"), ("STORE BEFORE", (0, 0, 0), "reads")],
    ),
    Case(
        "bulk", "one_fences_for_all", lambda gpu: (gpu.empty(32),), (0, LANES), KINDS[21], "byte ",
        [("FOR ALL", (0, 0, 0), "reads")],
    ),
    Case(
        "bulk", "writes_while_storing", lambda gpu: (gpu.empty(32),), (0, LANES), KINDS[19], "byte ",
        [("STORING", (0, 0, 0), "reads"), ("WRITING", None, "writes")],
    ),
    Case("bulk", "store_never_waited", lambda gpu: (gpu.empty(32),), (0, LANES), KINDS[11], "copy of 128 bytes",
         [("LOST STORE", (0, 0, 0), "")]),
    Case(
        "wgmma", "unfenced_operands", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[21], "byte ",
        [("FILL A", None, "writes"), ("UNFENCED", None, "reads")], block=128,
    ),
    Case(
        "wgmma", "operands_not_there", lambda gpu: (gpu.array(np.ones((64, 32)), np.float32), gpu.empty((64, 64))),
        (1, TIMES_8), KINDS[7], "byte ", [("OPERAND LOAD", (0, 0, 0), "writes"), ("OPERAND USE", None, "reads")],
        block=128,
    ),
    Case(
        "wgmma", "overwrites_operands", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[19], "byte ",
        [("READING OPERANDS", None, "reads"), ("OVERWRITING OPERANDS", None, "writes")], block=128,
    ),
    Case(
        "wgmma", "waits_for_the_group_before", lambda gpu: (gpu.empty((64, 64)),), (0, 2 * TIMES_8), KINDS[20],
        "it reads them", [("SECOND GROUP", None, ""), ("FIRST ALONE", None, "")], block=128,
    ),
    Case(
        "wgmma", "without_begin", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[20],
        "no wgmma.fence stands between", [("NO BEGIN", None, "")], block=128,
    ),
    Case(
        "wgmma", "three_warps", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[9], "waits in wgmma",
        [("THREE WARPS", None, "")], block=128,
    ),
    Case(
        "wgmma", "operand_in_global_memory",
        lambda gpu: (gpu.array(np.ones((64, 32)), np.float32), gpu.empty((64, 64))), (1, TIMES_8), KINDS[2],
        "wgmma takes shared memory alone", [("ELSEWHERE", None, "reads")], block=128,
    ),
    Case(
        "wgmma", "operand_in_a_variable", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[2],
        "the emulator's wgmma reads what block_shared() gave", [("VARIABLE", None, "reads")], block=128,
    ),
    Case(
        "wgmma", "operand_between_patterns", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[4], "byte 128",
        [("BETWEEN", None, "reads")], block=128,
    ),
    Case(
        "wgmma", "descriptor_too_wide", lambda gpu: (gpu.empty((64, 64)),), (0, TIMES_8), KINDS[2],
        "of shared memory, of which the block has 25600 bytes", [("TOO WIDE", None, "reads")], block=128,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_fault_is_found_and_its_absence_too(gpu: Gpu, case: Case) -> None:
    check(gpu, case)


def test_every_kind_of_finding_is_planted() -> None:
    elsewhere = {"more shared memory than there is", "thread that does not end", ABSENT_BLOCK}
    assert {case.kind for case in CASES} | elsewhere == set(KINDS)


# ---- what is right and must not be reported


def test_atomics_do_not_race_with_each_other(gpu: Gpu) -> None:
    y = gpu.array([0], np.int32)
    assert gpu.findings("races", "all_atomic", 5, 64, y) == ()
    assert y.get().tolist() == [320]


def test_neighbouring_pieces_of_any_size_do_not_race(gpu: Gpu) -> None:
    y = gpu.empty(64, np.uint8)
    assert gpu.findings("races", "neighbouring_bytes", 1, 64, y) == ()
    np.testing.assert_array_equal(y.get(), 2 * (63 - np.arange(64)))
    two, eight, sixteen = gpu.empty(32, np.int16), gpu.empty(32, np.float64), gpu.empty((32, 4))
    assert gpu.findings("races", "wide_neighbours", 1, 32, two, eight, sixteen) == ()
    np.testing.assert_array_equal(two.get(), LANES)
    np.testing.assert_array_equal(eight.get(), LANES)
    np.testing.assert_array_equal(sixteen.get(), LANES[:, None] + np.arange(4) / 4)


def test_a_large_struct_needs_no_more_alignment_than_its_members(gpu: Gpu) -> None:
    x, y = gpu.array([1.0, 2.0, 3.0]), gpu.empty(2, np.float64)
    assert gpu.findings("memory", "merely_large", 1, 1, x, y) == ()
    assert y.get().tolist() == [2.0, 3.0]


def test_constants_are_neither_shared_nor_unwritten(gpu: Gpu) -> None:
    y = gpu.empty(4)
    assert gpu.findings("memory", "constants", 1, 4, y) == ()
    assert y.get().tolist() == [41, 32, 24, 18]


def test_copies_beyond_the_edge_arrive_as_zeros(gpu: Gpu) -> None:
    x, y = gpu.array(np.arange(1, 129), np.float32), gpu.empty(128)
    assert gpu.findings("async", "edges", 1, 32, x, y, 100) == ()
    np.testing.assert_array_equal(y.get(), np.where(np.arange(128) < 100, np.arange(1, 129), 0))


# ---- shared memory


def test_shared_variables_in_a_function_and_outside(gpu: Gpu) -> None:
    y, z = gpu.empty(32), gpu.empty(32, np.int32)
    assert gpu.findings("memory", "in_variables", 2, 32, y, z, 7)[0].kind == KINDS[1]  # both blocks write y
    y, z = gpu.empty(32), gpu.empty(32, np.int32)
    assert gpu.findings("memory", "in_variables", 1, 32, y, z, 7) == ()
    a = (3 - LANES // 8) * 8 + LANES % 8
    np.testing.assert_array_equal(y.get(), a + 10 * (31 - LANES) + 0.5)
    np.testing.assert_array_equal(z.get(), [7] * 32)


def test_a_shared_variable_that_nothing_set_is_named(gpu: Gpu) -> None:
    (finding,) = gpu.findings("memory", "unset_variable", 1, 32, gpu.empty(32, np.int32))
    assert (finding.kind, finding.places) == (KINDS[6], (line("memory", "UNSET"),))
    assert "shared variable unset, byte 0" in finding.text
    assert finding.times == 32


def test_dynamic_shared_memory_ends_where_the_launch_says(gpu: Gpu) -> None:
    y = gpu.empty(32, np.int32)
    assert gpu.findings("memory", "dynamic", 1, 32, y, shared=128) == ()
    np.testing.assert_array_equal(y.get(), LANES[::-1])
    (finding,) = gpu.findings("memory", "dynamic", 1, 32, y, shared=124)
    assert (finding.kind, finding.places) == (KINDS[2], (line("memory", "DYNAMIC"),))
    assert finding.parties[0].thread == (31, 0, 0)
    assert "byte 124 of shared memory, of which the block has 124 bytes" in finding.text
    typed = planted("memory", "dynamic_of_type", T=(np.dtype(np.float64), np.dtype(np.int32)))
    for dtype in (np.float64, np.int32):
        y = gpu.empty(32, dtype)
        typed[np.dtype(dtype)](1, 32, y, shared=32 * y.itemsize)
        np.testing.assert_array_equal(y.get(), LANES[::-1])


def test_more_shared_memory_than_there_is(one_order: Gpu) -> None:
    y = one_order.empty(32)
    (finding,) = one_order.findings("memory", "large", 1, 32, y, shared=1000)
    assert finding.kind == KINDS[12]
    assert "thread (0, 0, 0) of block (0, 0, 0) needs 80,000 bytes, there are 1,000, at" in finding.text
    assert line("memory", "LARGE") in finding.parties[0].through
    assert one_order.findings("memory", "large", 1, 32, y, shared=80000) == ()
    (finding,) = one_order.findings("memory", "too_many_variables", 1, 32, y)
    assert (finding.kind, finding.places) == (KINDS[12], (line("memory", "MANY VARIABLES"),))
    assert "needs 64,000 bytes, there are 49,152" in finding.text
    with pytest.raises(LaunchError, match="a block has at most 232448 bytes of shared memory; got 232449"):
        planted("memory", "large")(1, 32, y, shared=232449)


# ---- threads that wait for others, and threads of all shapes


def test_a_thread_that_waits_in_a_loop(gpu: Gpu) -> None:
    gpu.runtime.patience = 10_000
    flag, y = gpu.array([0, 0], np.int32), gpu.empty(32, np.int32)
    findings = gpu.findings("memory", "waits_for_another", 1, 32, flag, y, 0)
    (finding,) = (f for f in findings if f.kind == KINDS[16])
    assert finding.parties[0].thread == (1, 0, 0)
    assert "has made 10,000 accesses without a barrier" in finding.text
    flag = gpu.array([0, 0], np.int32)
    assert gpu.findings("memory", "waits_for_another", 1, 32, flag, y, 1) == ()
    assert y.get().tolist() == [1] * 32


def test_a_loop_that_touches_nothing(one_order: Gpu) -> None:
    before = signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)
    y = one_order.empty(32, np.int32)
    (finding,) = one_order.findings("memory", "turns_in_circles", 1, 32, y, 0)
    assert (finding.kind, finding.places) == (KINDS[16], (line("memory", "CIRCLE"),))
    assert "computes for seconds without any access" in finding.text
    assert one_order.findings("memory", "turns_in_circles", 1, 32, y, 1) == ()
    assert y.get().tolist() == [1000] * 32
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_VIRTUAL)) == before


def test_counting_barriers(gpu: Gpu) -> None:
    y = gpu.empty((51, 3), np.int32)
    assert gpu.findings("meetings", "counted", 1, 51, y) == ()
    np.testing.assert_array_equal(y.get(), [[17, 0, 1]] * 51)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("by", [0, 1, 3, 9, 31])
def test_shuffles(one_order: Gpu, width: int, by: int) -> None:
    """As the PTX ISA defines shfl: lanes beyond the edge of a segment keep their own value."""
    y = one_order.empty((4, 64), np.int32)
    assert one_order.findings("meetings", "shuffles", 1, 64, y, width, by) == ()
    lane, warp = np.arange(64) % 32, np.arange(64) // 32 * 32
    first, last = lane // width * width, lane // width * width + width - 1
    expected = [
        warp + first + by % width,
        np.where(lane - by < first, warp + lane, warp + lane - by),
        np.where(lane + by > last, warp + lane, warp + lane + by),
        np.where(lane ^ by > last, warp + lane, warp + (lane ^ by)),
    ]
    np.testing.assert_array_equal(y.get(), expected)


def test_shuffles_move_eight_bytes(gpu: Gpu) -> None:
    y = gpu.empty(32, np.float64)
    assert gpu.findings("meetings", "shuffles_of_doubles", 1, 32, y) == ()
    np.testing.assert_array_equal(y.get(), (LANES ^ 3) + 0.125)


@pytest.mark.parametrize("threads", [32, 20])
def test_votes(gpu: Gpu, threads: int) -> None:
    """Lanes that the block does not have do not vote."""
    y = gpu.array(np.zeros((4, 32)), np.uint32)
    assert gpu.findings("meetings", "votes", 1, threads, y, threads) == ()
    thirds = sum(1 << i for i in range(0, threads, 3))
    found = y.get()[:, :threads]
    np.testing.assert_array_equal(found[0], [thirds] * threads)
    np.testing.assert_array_equal(found[1], [threads == 32] * threads)
    np.testing.assert_array_equal(found[2], [1] * threads)
    np.testing.assert_array_equal(found[3], [0b101010101010 if i < 12 else 0 for i in range(threads)])


@pytest.mark.parametrize(
    ("grid", "block"), [((2, 3, 4), (4, 8, 3)), ((5,), (1024,)), ((1, 1, 7), (2, 2, 64)), ((3, 2), (33,))]
)
def test_blocks_and_grids_of_all_shapes(gpu: Gpu, grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    blocks, threads = int(np.prod(grid)), int(np.prod(block))
    y = gpu.empty((blocks, threads), np.int32)
    assert gpu.findings("meetings", "indices", grid, block, y) == ()
    number = np.arange(threads)
    np.testing.assert_array_equal(y.get(), np.arange(blocks)[:, None] * 10000 + number * 8 + number // 32)


def test_a_sum_over_1024_threads(gpu: Gpu) -> None:
    x, y = gpu.array(np.arange(1024), np.float32), gpu.empty(1024)
    assert gpu.findings("meetings", "sums", 1, 1024, x, y) == ()
    np.testing.assert_array_equal(y.get(), [1023 * 512] * 1024)


def test_struct_arguments(gpu: Gpu) -> None:
    y = gpu.empty(4, np.int32)
    assert gpu.findings("memory", "structs", 1, 1, y, (1, 2, 3), True, 200, 2.25, (4, 5, 6)) == ()
    assert y.get().tolist() == [321, 200, 9, 6]


# ---- tensor cores


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """The nearest number with 10 bits of fraction, ties away from zero."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def test_product_of_tf32(gpu: Gpu) -> None:
    a, b, d = random((16, 8), 0), random((8, 8), 1), random((16, 8), 2)
    result = gpu.array(d)
    assert gpu.findings("tensor", "product_of_tf32", 1, 32, gpu.array(a), gpu.array(b), result) == ()
    expected = d + to_tf32(a).astype(np.float64) @ to_tf32(b).astype(np.float64)
    np.testing.assert_allclose(result.get(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "bits", "value"),
    [
        ("product_of_bf16", to_bf16, from_bf16),
        (
            "product_of_fp16",
            lambda x: x.astype(np.float16).view(np.uint16),
            lambda b: b.view(np.float16).astype(np.float32),
        ),
    ],
)
def test_products_of_16_bits_through_ldmatrix(gpu: Gpu, name: str, bits: Any, value: Any) -> None:
    a, b, d = bits(random((16, 16), 0)), bits(random((16, 8), 1)), random((16, 8), 2)
    a[3, 4] = bits(np.float32(3e-6))[()]  # subnormal in float16
    arrays = gpu.array(a), gpu.array(b)
    result = gpu.array(d)
    assert gpu.findings("tensor", name, 1, 32, *arrays, result, 0) == ()
    expected = d + value(a).astype(np.float64) @ value(b).astype(np.float64)
    np.testing.assert_allclose(result.get(), expected, atol=5e-6)
    (finding,) = gpu.findings("tensor", name, 1, 32, *arrays, gpu.array(d), 1)  # a row that starts at no multiple of 16
    assert (finding.kind, finding.parties[0].thread) == (KINDS[4], (5, 0, 0))
    assert line("tensor", "ROWS OF A") in finding.text


def test_rounding_to_what_tensor_cores_take(one_order: Gpu) -> None:
    x = np.concatenate([random((40,), 0), random((8,), 1) * 1e-6, random((8,), 2) * 1e5, [0, -0.0, 1e38, -1e38]])
    x = np.concatenate([x, [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 65520]]).astype(np.float32)  # ties
    bf16, fp16, tf32 = one_order.empty(32, np.uint32), one_order.empty(32, np.uint32), one_order.empty(64, np.uint32)
    assert one_order.findings("tensor", "rounded", 1, 32, one_order.array(x), bf16, fp16, tf32) == ()
    np.testing.assert_array_equal(bf16.get().view(np.uint16), to_bf16(x))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(fp16.get().view(np.uint16), x.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(tf32.get().view(np.float32), to_tf32(x))


# ---- what Hopper added


def swizzled(rows: np.ndarray, span: int) -> np.ndarray:
    """``rows`` of ``span`` bytes as TMA lays them: by its own definition, on addresses of 16-byte pieces."""
    if span == 0:
        return rows
    pieces = rows.reshape(-1, 16 // rows.itemsize)
    number = np.arange(len(pieces))
    return pieces[number ^ (number >> 3 & (span // 16 - 1))].reshape(rows.shape)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (8, 32), (-3, -5), (17, 39), (100, 0), (0, -300)])
def test_boxes(one_order: Gpu, swizzle: int, row: int, column: int) -> None:
    """Beyond the edges zeros arrive and nothing is stored."""
    columns = swizzle // 4 or 32
    x, y = np.arange(1, 20 * 44 + 1, dtype=np.float32).reshape(20, 44), np.zeros((20, 44), np.float32)
    rows = 256 // columns
    given, back, raw = one_order.array(x), one_order.array(y), one_order.empty((rows, columns))
    maps = TensorMap(given, (rows, columns), swizzle, 42), TensorMap(back, (rows, columns), swizzle, 42, writes=True)
    assert one_order.findings("bulk", "boxes", 1, 32, *maps, raw, row, column) == ()
    wide = np.zeros((1000, 1000), np.float32)
    wide[400:420, 400:442] = x[:, :42]
    box = wide[400 + row : 400 + row + rows, 400 + column : 400 + column + columns]
    np.testing.assert_array_equal(raw.get(), swizzled(np.ascontiguousarray(box), swizzle))
    expected = np.zeros((1000, 1000), np.float32)
    expected[400 + row : 400 + row + rows, 400 + column : 400 + column + columns] = box
    np.testing.assert_array_equal(back.get(), np.pad(expected[400:420, 400:442], ((0, 0), (0, 2))))


def test_boxes_of_three_dimensions(gpu: Gpu) -> None:
    x = random((3, 5, 40), 0)
    raw = gpu.empty((2, 4, 32))
    tensor = TensorMap(gpu.array(x), (2, 4, 32), to_tf32=True)
    assert gpu.findings("bulk", "boxes_of_three", 1, 32, tensor, raw, 2, 3, 12) == ()
    expected = np.zeros((2, 4, 32), np.float32)
    expected[:1, :2, :28] = to_tf32(x)[2:, 3:, 12:]
    np.testing.assert_array_equal(raw.get(), expected)


@pytest.mark.parametrize(
    ("name", "columns", "bits", "value", "swizzle"),
    [
        ("product_tf32", 128, to_tf32, lambda x: x, 128),
        ("product_bf16", 64, to_bf16, from_bf16, 64),
        (
            "product_fp16", 64, lambda x: x.astype(np.float16).view(np.uint16),
            lambda b: b.view(np.float16).astype(np.float32), 32,
        ),
    ],
)  # fmt: skip
def test_products_of_a_warpgroup(gpu: Gpu, name: str, columns: int, bits: Any, value: Any, swizzle: int) -> None:
    a, b = bits(random((64, swizzle // 4), 0)), bits(random((columns, swizzle // 4), 1))
    if name != "product_tf32":  # twice as many, of half the size
        a, b = bits(random((64, swizzle // 2), 0)), bits(random((columns, swizzle // 2), 1))
    y = gpu.empty((64, columns))
    maps = (TensorMap(gpu.array(m), (len(m), m.shape[1]), swizzle) for m in (a, b))
    assert gpu.findings("wgmma", name, 1, 128, *maps, y) == ()
    np.testing.assert_allclose(y.get(), value(a).astype(np.float64) @ value(b).T.astype(np.float64), atol=2e-5)


def test_a_swizzle_that_does_not_match_shows_in_the_numbers(gpu: Gpu) -> None:
    a, b = np.rint(3 * random((64, 32), 0)), np.rint(3 * random((64, 32), 1))
    for mended in (1, 0):
        y = gpu.empty((64, 64))
        assert gpu.findings("wgmma", "written_otherwise", 1, 128, gpu.array(a), gpu.array(b), y, mended) == ()
        assert (y.get() == a @ b.T).all() == bool(mended)


# ---- traffic


def traffic(gpu: Gpu, name: str, grid: int, block: int, *arguments: Any) -> dict[str, int]:
    """What one launch moved, without what is 0."""
    with record_launches() as records:
        assert gpu.findings("traffic", name, grid, block, *arguments) == ()
    (record,) = records
    assert (record.kernel, record.grid, record.block) == (name, (grid, 1, 1), (block, 1, 1))
    return {key: value for key, value in vars(record.traffic).items() if value}


def test_traffic_is_what_one_counts_by_hand(gpu: Gpu) -> None:
    x = gpu.array(np.arange(128), np.float32)
    assert traffic(gpu, "copies", 2, 64, x, gpu.empty(100), 100) == {
        "global_read": 400, "global_written": 400, "distinct_read": 400, "distinct_written": 400
    }  # fmt: skip
    x = gpu.array(np.arange(64), np.float64)
    assert traffic(gpu, "copies_vectors", 1, 32, x, gpu.empty(64, np.float64)) == {
        "global_read": 512, "global_written": 512, "distinct_read": 512, "distinct_written": 512
    }  # fmt: skip
    x, y = gpu.array([1, 2, 3], np.uint8), gpu.array(np.zeros(32), np.int32)
    assert traffic(gpu, "rereads", 1, 32, x, y, 3) == {
        "global_read": 32 * 3 * 5, "global_written": 32 * 3 * 4,  # 3 times a byte and a number of y, per thread
        "distinct_read": 3 + 128, "distinct_written": 128, "barriers": 3,
    }  # fmt: skip
    labels, bins = gpu.array(LANES % 4, np.int32), gpu.array(np.zeros(8), np.uint32)
    assert traffic(gpu, "counts", 2, 16, labels, bins) == {
        "global_read": 2 * 16 * 8, "global_written": 2 * 16 * 4, "atomics": 32,
        "distinct_read": 64 + 16, "distinct_written": 16,
    }  # fmt: skip
    x = gpu.array(np.arange(64), np.float32)
    assert traffic(gpu, "through_shared", 1, 64, x, gpu.empty(64)) == {
        "global_read": 256, "global_written": 256, "distinct_read": 256, "distinct_written": 256,
        "shared_read": 512, "shared_written": 256, "barriers": 2,
    }  # fmt: skip
    assert traffic(gpu, "through_copies", 1, 16, x, gpu.empty(16)) == {
        "global_read": 12 * 16, "distinct_read": 12 * 16, "global_written": 64, "distinct_written": 64,
        "shared_written": 16 * 16, "shared_read": 64,
    }  # fmt: skip


# ---- the machinery


def test_a_source_that_does_not_compile_is_shown_with_its_line(one_order: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "wrong.cu"
    path.write_text("__global__ void wrong(float* y) {\n  y[0] = undeclared;\n}\n")
    with pytest.raises(LaunchError, match=r"wrong\.cu:2:.*undeclared"):
        Kernel(path, "wrong")[()](1, 1, one_order.empty(1))
    path = tmp_path / "foreign.cu"
    path.write_text("float foreign(float);\n__global__ void calls(float* y) { y[0] = foreign(1); }\n")
    with pytest.raises(LaunchError, match="undefined reference to `foreign"):
        Kernel(path, "calls")[()](1, 1, one_order.empty(1))
    for name in ("wrong", "calls"):
        _launch.KERNELS.pop((path.with_name("wrong.cu" if name == "wrong" else "foreign.cu"), name))


@pytest.mark.parametrize(
    "unset", ["float sum; for (int i = 0; i < n; ++i) sum += x[i];", "float sum; if (n > 9) sum = x[1];"]
)
def test_a_register_that_nothing_set_is_refused(one_order: Gpu, tmp_path: Path, unset: str) -> None:
    """Nothing at run time could show it."""
    source = tmp_path / "unset.cu"
    source.write_text(f"__global__ void unset(float* x, int n) {{\n  {unset}\n  x[0] = sum;\n}}\n")
    with pytest.raises(LaunchError, match=r"unset\.cu:.*.?sum.? (is|may be) used uninitialized"):
        Kernel(source, "unset")[()](1, 1, one_order.empty(4), 0)
    source.write_text(source.read_text().replace("float sum;", "float sum = 0;"))
    Kernel(source, "unset")[()](1, 1, one_order.empty(4), 0)
    _launch.KERNELS.pop((source, "unset"))


def test_flags_that_an_older_compiler_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, newest in (
        ("g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", False),
        ("g++-12 (Debian 12.2.0-14+deb12u1) 12.2.0", True),
        ("g++ (GCC) 15.1.1 20250425 (Red Hat 15.1.1-1)", True),
        ("c++ (GCC) 9.3.0", False),
    ):
        monkeypatch.setattr(build, "_compiler_version", lambda said=said: f"{said}\nCopyright Free Software Foundation")
        flags = build._flags.__wrapped__()
        assert ("-ftrivial-auto-var-init=pattern" in flags) == newest, said
        assert "-O1" in flags


def test_a_grid_that_is_too_large_is_refused(one_order: Gpu) -> None:
    with pytest.raises(LaunchError, match="the emulator runs at most 2147483647 blocks; got a grid of"):
        planted("races", "all_atomic")((2**31 - 1, 2, 1), 1, one_order.array([0], np.int32))


def test_a_changed_header_compiles_anew(one_order: Gpu, tmp_path: Path) -> None:
    (tmp_path / "value.h").write_text("#define VALUE 1\n")
    for number, name in enumerate(("first", "second")):
        (tmp_path / "value.h").write_text(f"#define VALUE {number}\n")
        (tmp_path / f"{name}.cu").write_text('#include "value.h"\n__global__ void k(int* y) { y[0] = VALUE; }\n')
        same = tmp_path / name / "same.cu"
        same.parent.mkdir()
        same.write_text('#include "../value.h"\n__global__ void k(int* y) { y[0] = VALUE; }\n')
        for path in (tmp_path / f"{name}.cu", same):
            y = one_order.empty(1, np.int32)
            Kernel(path, "k")[()](1, 1, y)
            assert y.get().tolist() == [number]
            del _launch.KERNELS[path, "k"]


def test_launches_of_several_python_threads_do_not_meet(one_order: Gpu) -> None:
    kernel = planted("meetings", "sums")
    x, results = one_order.array(np.arange(1024), np.float32), []

    def work() -> None:
        with use_backend("emulated"):
            for _ in range(5):
                y = one_order.empty(1024)
                kernel(1, 1024, x, y)
                results.append(y.get()[0])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [1023 * 512] * 20


def test_the_stack_is_whole_again_after_an_overflow(one_order: Gpu) -> None:
    for _ in range(3):
        y = one_order.empty(32, np.int32)
        assert one_order.findings("memory", "recursive", 1, 32, y, 0)[0].kind == KINDS[15]
        assert one_order.findings("memory", "recursive", 1, 32, y, 1) == ()


@pytest.mark.parametrize("name", ["waits_for_another", "turns_in_circles"])
def test_an_interrupt_ends_a_launch(name: str) -> None:
    arguments = "flag, y" if name == "waits_for_another" else "y"
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with Ctrl-C ignored
sys.path[:0] = {sys.path!r}
from pathlib import Path
from rawgrad.kernels._dispatch import backend
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._launch import Kernel, runtime_of
with backend("emulated"):
    module = device_named("cuda").array_module
    flag, y = module.zeros(2, "int32"), module.zeros(32, "int32")
    kernel = Kernel(Path({str(PLANTED / "memory.cu")!r}), {name!r})
    kernel(1, 32, {arguments}, 1)
    runtime_of(y).patience = 2**60
    print("ready", flush=True)
    kernel(1, 32, {arguments}, 0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert process.returncode in (1, 130, -signal.SIGINT)


def test_without_a_compiler_it_refuses_with_the_reason() -> None:
    program = """
import numpy, rawgrad
from rawgrad.kernels._dispatch import BACKENDS
print(BACKENDS["emulated"].problem())
try:
    rawgrad.backend("emulated")
except rawgrad.BackendError as error:
    print(error)
"""
    environment = {**os.environ, "CXX": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    reason = "it needs a C++ compiler: /nonexistent, which the variable CXX names, was not found"
    assert done.stdout == f"{reason}\nbackend 'emulated' cannot run here: {reason}\n"


def test_without_a_compiler_tests_skip_visibly() -> None:
    test = Path(__file__).with_name("test_gemm.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-k", "emulated", str(test)]
    environment = {**os.environ, "CXX": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, "-x"], env=environment, capture_output=True, text=True, cwd=test.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"SKIPPED \[\d+\] .*cannot run here: it needs a C\+\+ compiler", done.stdout), done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]


# ---- results that depend on the order of threads


@pytest.mark.parametrize(
    ("name", "grid", "arguments", "about"),
    [
        (
            "sums", 1, lambda gpu: (gpu.array(random((64,), 0)), gpu.array([0, 0], np.float32)),
            "y (float32[2]), element 1",
        ),
        (
            "collects", 2,
            lambda gpu: tuple(gpu.array(a) for a in (np.ones(128, "f4"), np.zeros((2, 64), "i4"), np.zeros(1, "i4"))),
            "list (int32[2, 64]), element 0 = [0, 0]\nit is 0 when threads run forward, and 127 backward; 128 of 128",
        ),
        (
            "last_block", 3, lambda gpu: (gpu.array([0], np.int32), gpu.empty(1, np.int32)),
            "it is 0 when threads run forward, and 2 backward; 1 of 1",
        ),
    ],
)  # fmt: skip
def test_a_result_that_depends_on_the_order(one_order: Gpu, name: str, grid: int, arguments: Any, about: str) -> None:
    assert one_order.findings("orders", name, grid, 64, *arguments(one_order), 0) == ()
    with compare_orders():
        given = arguments(one_order)
        (finding,) = one_order.findings("orders", name, grid, 64, *given, 0)
        assert finding.kind == ORDER_KIND == "result that depends on the order of threads"
        assert about in finding.text
        assert finding.text.startswith(f"{ORDER_KIND}: {finding.argument} (")
        forward = arguments(one_order)
        with compare_orders([FORWARD]):
            assert one_order.findings("orders", name, grid, 64, *forward, 0) == ()
        for one, other in zip(given, forward, strict=True):
            np.testing.assert_array_equal(one.get(), other.get())
        assert one_order.findings("orders", name, grid, 64, *arguments(one_order), 1) == ()


def test_a_fault_under_several_orders_is_told_once(one_order: Gpu) -> None:
    with compare_orders():
        found = one_order.findings("orders", "races_backward", 1, 64, one_order.array([1, 1], np.int32))
    assert {finding.kind for finding in found} == {GLOBAL_RACE}
    assert len({finding.places for finding in found}) == len(found) == 2  # the reader comes first, or the writer


def test_what_an_operation_gives_does_not_depend_on_the_order(one_order: Gpu) -> None:
    from rawgrad.kernels.gemm import gemm

    a, b = one_order.array(random((70, 40), 0)), one_order.array(random((40, 33), 1))
    with compare_orders():
        y = gemm(a, b)
    np.testing.assert_array_equal(y.get(), gemm(a, b).get())


def test_the_page_shows_each_kind_as_it_is_reported(one_order: Gpu) -> None:
    """docs/emulator.md has a section for each kind of finding, with the output of a planted kernel."""
    page = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
    shown = dict(re.findall(r"^### ([^\n]+)\n\n[^\n]+\n\n```\n(.*?)\n```", page, re.MULTILINE | re.DOTALL))
    reported: dict[str, set[str]] = {}
    for case in CASES:
        found = one_order.findings(case.file, case.name, case.grid, case.block, *case.arguments(one_order), 0)
        for finding in found:
            reported.setdefault(finding.kind, set()).add(finding.text)
    flag, y = one_order.array([0, 0], np.int32), one_order.empty(32, np.int32)
    one_order.runtime.patience = 10_000
    endless, *_ = one_order.findings("memory", "waits_for_another", 1, 32, flag, y, 0)
    reported[endless.kind] = {endless.text.replace("10,000", f"{2**27:,}")}
    (large,) = one_order.findings("memory", "too_many_variables", 1, 32, one_order.empty(32))
    reported[large.kind] = {large.text}
    (alone,) = one_order.findings("clusters", "ends_alone", 2, 32, one_order.empty(64, np.int32), 0)
    reported[alone.kind] = {alone.text}
    with compare_orders():
        x, sums = one_order.array(random((64,), 0)), one_order.array([0, 0], np.float32)
        (order,) = one_order.findings("orders", "sums", 1, 64, x, sums, 0)
    reported[order.kind] = {order.text}
    assert list(shown) == [kind[0].upper() + kind[1:] for kind in (*KINDS, ORDER_KIND)]
    for kind in (*KINDS, ORDER_KIND):
        text = shown[kind[0].upper() + kind[1:]]
        assert text in reported[kind], f"the page shows\n{text}\nreported is\n" + "\n\n".join(reported[kind])


# ---- functions of CUDA that no kernel of ours uses


def test_intrinsic_functions(one_order: Gpu) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**32, 32, dtype=np.uint32) for _ in range(2))
    y = one_order.empty((7, 32), np.uint32)
    assert one_order.findings("intrinsics", "of_integers", 1, 32, one_order.array(a), one_order.array(b), y, 32) == ()
    bits = [f"{v:032b}" for v in a]
    wide = a.astype(np.uint64) * b
    signed = a.view(np.int32).astype(np.int64) * b.view(np.int32)
    expected = [
        [int(t[::-1], 2) for t in bits],
        [t.count("1") + 100 * t.index("1") + 10000 * (t[::-1].index("1") + 1) for t in bits],
        wide >> 32,
        (signed >> 32) % 2**32,
        (b << 5) | (a >> 27),
        (a >> 16 & 255) | (a >> 8 & 255) << 8 | (b >> 16 & 255) << 16 | (b >> 24) << 24,
        ((a & 0xFFFFFF).astype(np.uint64) * (b & 0xFFFFFF)) % 2**32,
    ]
    np.testing.assert_array_equal(y.get(), np.array(expected, dtype=np.uint64).astype(np.uint32))

    x = (rng.standard_normal(32) * 3).astype(np.float32)
    y, z = one_order.empty((5, 32)), one_order.empty((2, 32), np.int32)
    assert one_order.findings("intrinsics", "of_floats", 1, 32, one_order.array(x), y, z, 32) == ()
    wide_x = x.astype(np.float64)
    reals = [
        np.sin(wide_x) + np.cos(wide_x), 1 / np.sqrt(abs(wide_x) + 1), np.sin(np.pi * wide_x), np.clip(wide_x, 0, 1),
        wide_x + np.pi,
    ]  # fmt: skip
    np.testing.assert_allclose(y.get(), reals, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(z.get()[0], np.rint(x) + 100 * np.floor(x) + 10000 * np.ceil(x))
    np.testing.assert_array_equal(z.get()[1], np.trunc(x))

    whole = rng.integers(-1000, 1000, 32).astype(np.int32)
    y = one_order.empty((5, 32), np.int32)
    assert one_order.findings("intrinsics", "of_warps", 1, 32, one_order.array(whole), y, 32) == ()
    rest = np.fmod(whole, 3)
    same = [sum(1 << j for j in range(32) if rest[j] == r) for r in rest]
    expected = [[whole.sum()] * 32, [whole.min()] * 32, np.array(same, np.uint32).view(np.int32), [1] * 32, whole]
    np.testing.assert_array_equal(y.get(), expected)


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("int main() { return 0; }", ""),
        ("int main() {\n  k<<<1, 1>>>(y);\n}", "\n\n"),
        ("void run(float* y) { k<<<1, 1>>>(y); }\nvoid again(float* y) { run(y); }", "\n"),
        ("template <class T>\nvoid run(T* y) { k<<<1, 1>>>(y); }", "\n"),
        ('extern "C" {\nvoid run(float* y) { cudaFree(y); }\n}', 'extern "C" {\n\n}'),
        ("namespace a { namespace b {\nvoid run() { cudaDeviceSynchronize(); }\nconstexpr int N = 3;\n} }",
         "namespace a { namespace b {\n\nconstexpr int N = 3;\n} }"),
        ("struct Event { cudaEvent_t e; };\nEvent now() { return {}; }", "\n"),
        ("struct Pair { int a, b; };", "struct Pair { int a, b; };"),
        ("constexpr int blocks(int n) { return (n + 255) / 256; }",) * 2,
        ("static void cpu(const float* x) { for (int i = 0; i < 3; ++i) { if (x[i] < 2) return; } }",) * 2,
        ("// main() { <<<\n/* cudaMalloc( */ const char* text = \"main( <<<\";",) * 2,
        ("#define CHECK(x) if ((x) != cudaSuccess) \\\n  exit(1)\n#include <vector>",) * 2,
        ("#include <cuda_runtime.h>\n#include \"device_launch_parameters.h\"", "//\n//"),
    ],
)  # fmt: skip
def test_host_code_is_cut_and_nothing_else(tmp_path: Path, host: str, kept: str) -> None:
    kernel = "\n__global__ void k(float* y) { y[0] = 1; }\n"
    path = tmp_path / "file.cu"
    path.write_text(host + kernel + host)

    def lines(
        text: str,
    ) -> list[str]:  # without what stays of a line that is cut: blanks, a semicolon, an include's end
        return [" ".join(line.split()).rstrip(' ;>"') for line in text.split("\n")]

    assert lines(device_code(path)) == lines(kept + kernel + kept)


def test_dynamic_shared_memory_becomes_a_pointer(tmp_path: Path) -> None:
    path = tmp_path / "file.cu"
    for declared, pointer in (
        ("extern __shared__ float s[];", "float (* const s) = reinterpret_cast<float (*)>"),
        ("extern __shared__ __align__(sizeof(T) * (2)) unsigned char s[ ];", "unsigned char (* const s) = "),
        ("extern volatile __shared__ int s[];", "int (* const s) = reinterpret_cast<int (*)>"),
        ("extern __shared__ T rows[][33];", "T (* const rows)[33] = reinterpret_cast<T (*)[33]>"),
        ("__shared__ extern alignas(16) double\n  s[];", "double (* const s) = "),
    ):
        path.write_text(f"__global__ void k() {{ {declared} }}\n")
        code = device_code(path)
        assert pointer in code
        assert "rawgrad_emulator::dynamic_shared()" in code
        assert code.count("\n") == path.read_text().count("\n")
    declared = "__shared__ float a[3][TILE + 1], b; __shared__ Pair<int, f(2)> c[4]; // __shared__ int d;"
    assert shared_names(declared) == {"a", "b", "c"}
