"""The time outside kernels, on clocks that move by themselves."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from rawgrad.bench import harness, overhead, programs, rows
from rawgrad.bench.results import Entry, Ratio, Spread
from rawgrad.kernels import _jit, gemm
from rawgrad.kernels._dispatch import backend
from rawgrad.kernels._errors import BackendError


def ticking(step=10):
    """A clock that moves by ``step`` nanoseconds each time somebody looks."""
    return itertools.count(0, step).__next__


@_jit.serial
def one(x):
    return x + 1


@_jit.in_parts
def fill(part, slot, y):
    y[part] = part


def test_every_compiled_call_is_counted_and_gives_its_result():
    y = np.zeros(3)
    with overhead.timed_kernels(ticking()) as account:
        assert one(2) == 3
        fill(3, y)
        fill.here(3, y)
        np.sin(y)  # not compiled here
    assert list(y) == [0, 1, 2]
    assert account.calls == 3 and account.nanoseconds == 3 * 10  # one tick passes in each call
    one(2)
    assert account.calls == 3


def test_the_wrapper_goes_when_a_kernel_raises():
    before = type(one).__call__
    with pytest.raises(TypeError), overhead.timed_kernels(ticking()) as account:
        one(2, 3)
    assert account.calls == 1
    assert type(one).__call__ is before


def test_the_cost_of_timing_is_what_lies_outside_the_two_looks():
    """Of a clock that ticks when looked at, 2 ticks pass in a call: one inside, one until the next call."""
    cost = overhead.cost_of_timing(ticking(10))
    assert cost == pytest.approx(10, rel=0.01)


def outside(call, cost=0.0):
    contestant = overhead.OutsideKernels(overhead.OUTSIDE, call)
    contestant.cost = cost
    return contestant


def test_time_in_kernels_and_of_timing_is_left_out():
    now = [0]

    def clock():
        return now[0]

    def step():
        now[0] += 1000  # Python
        one(work)
        one(work)

    class Work:
        """An argument whose handling takes a millisecond, which counts as the kernel's."""

        @property
        def _numba_type_(self):
            now[0] += 1_000_000
            from numba import types

            return types.int64

        def __index__(self):
            return 1

        __int__ = __index__

    work = Work()
    contestant = outside(step, cost=100.0)
    seconds = contestant.timed([()] * 4, clock)
    assert now[0] > 4_000_000  # the arguments were handled
    assert seconds == pytest.approx(4 * (1000 - 2 * 100))
    assert "2 calls of compiled functions a step" in contestant.detail and "100 ns" in contestant.detail


def test_a_real_step_is_shorter_outside_kernels_than_whole():
    x = np.ones((256, 256), np.float32)
    gemm.gemm(x, x)

    def step():
        time.sleep(0.001)
        gemm.gemm(x, x)

    contestant = outside(step)
    contestant.cost = None
    assert contestant.turn(3, time.perf_counter_ns, 0) >= 0.001
    assert 0 < contestant.cost < 1e6


@pytest.mark.parametrize("name", ["overhead_p8_batch1", "overhead_p9_batch1"])
def test_the_rows_are_the_programs_steps(name):
    who = rows.contestants(name)
    assert overhead.OUTSIDE in who
    work = rows.build(name)
    assert work.name == name and [c.name for c in work.contestants] == who
    harness.validate(work)
    assert (work.flops, work.bytes) == (0, 0)


def test_a_backend_whose_kernels_are_not_seen_is_refused():
    with backend("numpy"), pytest.raises(BackendError, match="the active one is 'numpy'"):
        overhead.overhead("p8", 1, ["rawgrad"])


def test_alone_a_contestant_is_alone():
    (one,) = overhead.overhead("p8", 1, ["rawgrad"]).contestants
    assert one.name == "rawgrad"


def test_p8_is_one_linear_layer():
    assert programs.PROGRAMS["p8"].step(3).parameters() == 7850


def test_the_summary_says_it_in_words(a_row):
    def entry(name, seconds):
        return Entry(name, "", 1, Spread.of([seconds]), [seconds], None)

    whole, part, peer = entry("rawgrad", 400e-6), entry(overhead.OUTSIDE, 100e-6), entry("torch", 900e-6)
    ratios = [Ratio("torch", Spread.of([2.25])), Ratio(overhead.OUTSIDE, Spread.of([0.25]))]
    assert overhead.summary(a_row(name="o", entries=[whole, peer, part], ratios=ratios)) == (
        "o: 100 of 400 µs a step (25%) outside kernels; torch's whole step 900 µs"
    )
    assert overhead.summary(a_row(entries=[whole, peer])) is None
