"""The harness on contestants whose cost is known, because they themselves move the clock."""

from __future__ import annotations

import numpy as np
import pytest

from rawgrad.bench import harness, load
from rawgrad.bench.harness import Contestant, Work, WrongResult, assert_close
from rawgrad.bench.results import Limits, Rates
from rawgrad.kernels._errors import ArgumentError, RawgradError

MICROSECOND = 1_000


class Machine:
    """A clock that only moves when a contestant works, and a diary of who worked on what."""

    def __init__(self) -> None:
        self.now = 0
        self.diary: list[tuple[str, tuple[int, ...]]] = []

    def clock(self) -> int:
        return self.now

    def contestant(self, name, costs, value=3.0, inputs=((),), **options):
        """``costs``: nanoseconds of each call, the last one for all that follow."""
        remaining = list(costs)

        def call(*arguments):
            self.diary.append((name, arguments))
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return np.array([value])

        return Contestant(name, call, inputs, **options)


def work(*contestants, **options):
    return Work(
        name="planted",
        description="moves a clock",
        contestants=contestants,
        reference=lambda: np.array([3.0]),
        reference_name="a constant",
        check=lambda result, right: assert_close(result, right, 1e-6),
        **options,
    )


def quiet():
    return None


def measure(machine, of, **options):
    options = {"cpu_times": quiet, "settle": 0, **options}
    return harness.measure(of, clock=machine.clock, **options)


def test_a_planted_slow_peer_gives_its_ratio():
    machine = Machine()
    row = measure(
        machine,
        work(machine.contestant("rawgrad", [20 * MICROSECOND]), machine.contestant("torch", [50 * MICROSECOND])),
        rounds=5,
        min_round=0.001,
    )
    (ratio,) = row.ratios
    assert ratio.peer == "torch"
    assert ratio.times.median == pytest.approx(2.5)
    ours, theirs = row.entries
    assert ours.seconds.median == pytest.approx(20e-6) and theirs.seconds.median == pytest.approx(50e-6)
    assert len(ours.round_seconds) == len(theirs.round_seconds) == 5


def test_the_ratio_is_taken_round_by_round():
    """A machine that slows down fourfold half way does so for both: the ratio of each round stays 2."""
    machine = Machine()

    def slowing(name, cost):
        def call():
            machine.now += cost * (4 if machine.now > 60_000_000 else 1)
            return np.array([3.0])

        return Contestant(name, call)

    row = measure(machine, work(slowing("rawgrad", 1000), slowing("numpy", 2000)), rounds=40, min_round=0.001)
    ours = row.entries[0].seconds
    assert ours.high > 3.9 * ours.low
    (ratio,) = row.ratios
    assert ratio.times.q1 == pytest.approx(2.0) and ratio.times.q3 == pytest.approx(2.0)


@pytest.mark.parametrize("cost_us", [1, 7, 400, 3_000])
def test_a_round_lasts_at_least_its_time_and_not_much_longer(cost_us):
    machine = Machine()
    row = measure(machine, work(machine.contestant("rawgrad", [cost_us * MICROSECOND])), rounds=1, min_round=0.002)
    (entry,) = row.entries
    assert entry.inner * cost_us * 1e-6 >= 0.002
    assert entry.inner <= max(1, 1.3 * 0.002 / (cost_us * 1e-6) + 1)


def test_the_first_calls_are_not_measured():
    """First calls that take a second each (compilation, caches) leave no trace in the figures."""
    machine = Machine()
    row = measure(machine, work(machine.contestant("rawgrad", [10**9, 10**9, 10**9, 1000])), rounds=4, min_round=1e-5)
    assert row.entries[0].seconds.high == pytest.approx(1e-6)


def test_who_begins_rotates_from_round_to_round():
    machine = Machine()
    names = ("rawgrad", "torch", "numpy")
    row_work = work(*(machine.contestant(name, [1000]) for name in names))
    for contestant in row_work.contestants:  # so that nothing but the rounds is in the diary below
        contestant.result = lambda: np.array([3.0])
    measure(machine, row_work, rounds=4, min_round=1e-6)
    turns = [name for name, _ in machine.diary][-4 * 3 * 2 :]  # one call each, after one that is not timed
    assert turns[::2] == turns[1::2]
    assert turns[::2] == [
        *("rawgrad", "torch", "numpy"),
        *("torch", "numpy", "rawgrad"),
        *("numpy", "rawgrad", "torch"),
        *("rawgrad", "torch", "numpy"),
    ]


def test_a_wrong_result_is_an_error_and_nothing_is_timed():
    machine = Machine()
    right, wrong = machine.contestant("rawgrad", [1000]), machine.contestant("torch", [1000], value=3.1)
    with pytest.raises(WrongResult, match=r"planted: torch gives a wrong result: result\[0\] must be 3") as caught:
        measure(machine, work(right, wrong))
    assert isinstance(caught.value, RawgradError)
    assert len(machine.diary) == 2  # the two results; no warm-up


def test_a_nan_is_wrong():
    machine = Machine()
    with pytest.raises(WrongResult, match="rawgrad"):
        measure(machine, work(machine.contestant("rawgrad", [1000], value=np.nan)))


def test_inputs_rotate_through_all_sets():
    machine = Machine()
    one = machine.contestant("rawgrad", [1000], inputs=[(i,) for i in range(3)])
    measure(machine, work(one), rounds=6, min_round=1e-6)
    seen = [arguments[0] for _, arguments in machine.diary[1:]]  # after the validation's call
    assert sorted(set(seen)) == [0, 1, 2]
    timed = seen[-11::2]  # the last calls of the last turns
    assert set(timed) == {0, 1, 2}


def test_reset_comes_before_each_turn_and_is_not_timed():
    machine = Machine()
    state = {"steps": 0, "resets": 0}

    def call():
        state["steps"] += 1
        machine.now += 1000 * state["steps"]  # each step since the reset is slower
        return np.array([3.0])

    def reset():
        state["steps"], state["resets"] = 0, state["resets"] + 1
        machine.now += 10**9

    contestant = Contestant("rawgrad", call, reset=reset, result=lambda: np.array([3.0]))
    row = measure(machine, work(contestant), rounds=3, min_round=1e-6)
    assert row.entries[0].inner == 1
    assert row.entries[0].round_seconds == pytest.approx([2e-6] * 3)  # the second step after each reset
    assert state["resets"] == 3 + 2  # and warm-up and calibration


def test_the_fraction_is_of_the_best_that_the_machine_was_seen_to_do():
    machine, seen = Machine(), iter([Rates(1e9, 1e9), Rates(2e9, 5e8)])
    one, other = machine.contestant("rawgrad", [20 * MICROSECOND]), machine.contestant("torch", [50 * MICROSECOND])
    row = measure(machine, work(one, other, flops=1000, bytes=20_000), rates=lambda: next(seen))
    assert row.limits == Limits(2e9, 1e9, 10e-6)
    assert [entry.fraction for entry in row.entries] == pytest.approx([0.5, 0.2])


def test_without_flops_and_bytes_nobody_asks_for_the_limits():
    machine = Machine()
    row = measure(machine, work(machine.contestant("rawgrad", [1000])), rates=None)
    assert row.limits is None and row.entries[0].fraction is None

    def refuse():
        raise AssertionError("asked")

    assert measure(machine, work(machine.contestant("rawgrad", [1000])), rates=refuse).limits is None


def test_rounds_must_be_positive():
    machine = Machine()
    with pytest.raises(ArgumentError, match="rounds must be an integer of at least 1; got 0"):
        measure(machine, work(machine.contestant("rawgrad", [1000])), rounds=0)


@pytest.mark.parametrize(("others", "noisy"), [(0.0, False), (0.049, False), (0.051, True), (0.9, True)])
def test_rows_measured_under_load_are_marked(others, noisy):
    machine = Machine()
    # Two processors over 10 s: 20 s there were, the process itself used 8.
    readings = iter([load.CpuTimes(100, 1000, 5), load.CpuTimes(108 + 20 * others, 1020, 13)])
    row = measure(
        machine,
        work(machine.contestant("rawgrad", [1000])),
        rounds=2,
        min_round=1e-6,
        cpu_times=lambda: next(readings),
    )
    assert row.load_of_others == pytest.approx(others)
    assert row.noisy is noisy


def test_an_unknown_load_is_recorded_as_unknown():
    machine = Machine()
    row = measure(machine, work(machine.contestant("rawgrad", [1000])), rounds=2, min_round=1e-6)
    assert row.load_of_others is None and not row.noisy


def test_the_share_of_others_stays_between_zero_and_one():
    zero = load.CpuTimes(0, 0, 0)
    assert load.others_share(zero, load.CpuTimes(1, 10, 1.5)) == 0  # ticks are coarser than own time
    assert load.others_share(zero, load.CpuTimes(12, 10, 0)) == 1
    assert load.others_share(zero, zero) is None


def test_idle_is_what_nobody_used():
    zero, half = load.CpuTimes(0, 0, 0), load.CpuTimes(5, 10, 1)
    assert load.idle_share([(zero, half), (zero, load.CpuTimes(10, 10, 1))]) == 0.25
    assert load.idle_share([(zero, load.CpuTimes(11, 10, 1))]) == 0
    assert load.idle_share([]) is load.idle_share([(None, half), (zero, zero)]) is None


def test_cpu_times_of_this_process_grow_with_its_work():
    before = load.cpu_times()
    if before is None:
        pytest.skip("no /proc/stat here")
    x = np.arange(1000.0)
    while True:  # until its own account moved by many ticks: the two accounts do not tick together
        x = np.sin(x)
        after = load.cpu_times()
        if after.own - before.own >= 0.2:
            break
    assert after.total > before.total and after.busy > before.busy
    assert after.busy <= after.total


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], r"must have shape \(3,\); got \(2,\)"),
        ([1.0, 2.0, 3.5], r"result\[2\] must be 4 within 0.04; got 3.5, off by 0.5"),
        ([np.nan, 2.0, 3.5], r"result\[0\] must be 1 within 0.04; got nan"),
        ([np.inf, 2.0, 4.0], r"result\[0\] must be 1 within 0.04; got inf"),
    ],
)
def test_assert_close_says_where(result, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(result, np.array([1.0, 2.0, 4.0]), 0.01)


def test_assert_close_takes_what_is_close_and_nested():
    right = (np.array([1.0, 100.0]), [np.zeros((0, 3)), np.float64(2)])
    assert_close((np.array([1.5, 100.5]), [np.zeros((0, 3)), 2.0]), right, 0.01)
    with pytest.raises(AssertionError, match=r"result\[1\]\[1\]\[\] must be 2"):
        assert_close((right[0], [right[1][0], 2.1]), right, 0.01)
    with pytest.raises(AssertionError, match="must have 2 items; got 1"):
        assert_close((right[0],), right, 0.01)


def test_sets_past_cache(monkeypatch):
    monkeypatch.setattr(harness.machine, "cache_bytes", lambda: 1000)
    assert harness.sets_past_cache(300) == 7  # 2100 bytes are more than 2000
    assert harness.sets_past_cache(10**6) == 2  # never one: it would stay where it is
    assert harness.sets_past_cache(1) == 256
    assert harness.sets_past_cache(0) == 256


def test_a_turn_opens_with_a_pause_and_a_tenth_of_its_calls(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: machine.diary.append(("pause", seconds)))
    one = machine.contestant("rawgrad", [1000])
    assert one.turn(20, machine.clock, 0.25) == pytest.approx(1e-6)
    assert machine.diary == [("pause", 0.25), *[("rawgrad", ())] * (3 + 20)]
