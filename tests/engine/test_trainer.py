"""What ``fit`` can do beside the plain loop: each against the loop that a user would write."""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
import pytest
from _runs import EPOCHS, STEPS, bits, run

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import nn, optim
from rawgrad.engine.train import loop
from rawgrad.kernels._errors import ArgumentError, CaptureError, CheckpointError
from rawgrad.train import Callback, Checkpoints, EarlyStopping, JSONLines, Training, fit

pytestmark = pytest.mark.backends("numba", "emulated", "cuda")

FEATURES = 6


def batches(*sizes, dtype=np.float64, device="cpu"):
    """Batches of noise with labels of four classes."""
    draw = np.random.default_rng(0)
    pairs = [(draw.normal(size=(n, FEATURES)).astype(dtype), draw.integers(0, 4, n)) for n in sizes]
    return [(rg.tensor(x, device=device), rg.tensor(t, device=device)) for x, t in pairs]


def plain(dtype="float64", device="cpu"):
    """A network without anything that depends on how samples are grouped."""
    rg.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4))
    return model.to(device, dtype=dtype) if dtype != "float32" else model.to(device)


def trained(loader, model=None, epochs=2, lr=0.1, **options):
    model = model or plain()
    optimizer = optim.SGD(model.parameters(), lr)
    history = fit(model, loader, F.cross_entropy, optimizer, epochs=epochs, progress=False, **options)
    return history, [p.detach().to("cpu").numpy() for p in model.parameters()]


def assert_close(first, second, rtol=1e-12):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol, 1e-14)


def test_it_is_the_loop_that_one_would_write():
    loader = batches(5, 5, 3)
    model = plain()
    optimizer = optim.SGD(model.parameters(), 0.1)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    losses, rates = [], []
    for _ in range(2):
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    own = plain()
    other = optim.SGD(own.parameters(), 0.1)
    following = optim.lr_scheduler.CosineAnnealingLR(other, 6)
    history = fit(own, loader, F.cross_entropy, other, epochs=2, schedule=following, progress=False)
    assert [step.loss for step in history.steps] == losses and [step.lr for step in history.steps] == rates
    assert all(
        (a.detach().numpy() == b.detach().numpy()).all()
        for a, b in zip(model.parameters(), own.parameters(), strict=True)
    )


class TestAccumulation:
    @pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (4, 4, 4), (5, 5, 2, 5), (3,)])
    def test_the_steps_are_those_of_the_joined_batches(self, sizes):
        loader = batches(*sizes)
        history, weights = trained(loader, accumulate=2)
        joined, expected = trained([tuple(join(loader, at, i) for i in (0, 1)) for at in range(0, len(sizes), 2)])
        assert_close(weights, expected)
        for name in ("loss", "accuracy"):
            ours, theirs = ([getattr(step, name) for step in h.steps] for h in (history, joined))
            np.testing.assert_allclose(ours, theirs, 1e-12)
        assert history.epochs[0].loss == pytest.approx(joined.epochs[0].loss, 1e-12)

    @pytest.mark.parametrize("count", [0, -1, 1.5, True])
    def test_a_count_that_is_none(self, count):
        with pytest.raises(ArgumentError, match="accumulate must be an integer of at least 1"):
            trained(batches(3), accumulate=count)


def join(loader, at, part):
    return rg.tensor(np.concatenate([pair[part].numpy() for pair in loader[at : at + 2]]))


def test_gradients_are_clipped():
    norms = []

    class Seen(Callback):
        def on_gradients(self, training):
            squares = [float((p.grad.numpy() ** 2).sum()) for p in training.model.parameters()]
            norms.append(sum(squares) ** 0.5)

    trained(batches(5, 5), clip_norm=0.05, callbacks=[Seen()])
    assert len(norms) == 4 and all(norm == pytest.approx(0.05, 1e-4) for norm in norms)
    _, free = trained(batches(5, 5))
    _, loose = trained(batches(5, 5), clip_norm=1e6)
    assert_close(free, loose)


def test_further_metrics_are_means_over_the_validation_set():
    mean_of = {"first class": lambda p, t: float((t.numpy() == 0).mean())}
    validation = batches(4, 3)
    history, _ = trained(batches(5), validation=validation, metrics=mean_of)
    share = np.mean(np.concatenate([t.numpy() for _, t in validation]) == 0)
    assert [epoch.metrics for epoch in history.epochs] == [{"first class": pytest.approx(share)}] * 2
    assert f"first class {share:.4f}" in str(history.epochs[0])


class Worse(EarlyStopping):
    """Epochs that get better twice and then worse."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def on_epoch(self, training, epoch):
        worth = [3.0, 2.0, 2.5, 2.4, 2.3, 1.0][epoch.epoch]
        self.seen.append(worth)
        super().on_epoch(training, type(epoch)(**{**vars(epoch), "validation_loss": worth}))


class TestEarlyStopping:
    def test_it_ends_after_its_patience(self):
        callback = Worse(patience=3)
        history, _ = trained(batches(4), validation=batches(4), epochs=6, callbacks=[callback])
        assert callback.seen == [3.0, 2.0, 2.5, 2.4, 2.3] and callback.best == 2.0 and len(history.epochs) == 5

    def test_a_small_improvement_is_none(self):
        history, _ = trained(batches(4), validation=batches(4), epochs=6, callbacks=[Worse(patience=1, min_delta=1.0)])
        assert len(history.epochs) == 2

    def test_more_may_be_better(self):
        figures = iter([0.5, 0.6, 0.6])
        callback = EarlyStopping("how good", patience=1)
        history, _ = trained(
            batches(4), validation=batches(4), epochs=6, callbacks=[callback],
            metrics={"how good": lambda p, t: next(figures)},
        )  # fmt: skip
        assert len(history.epochs) == 3

    def test_it_goes_on_where_it_was(self, tmp_path):
        run(tmp_path, callbacks=[Worse(patience=1)], max_steps=STEPS // EPOCHS + 3)  # in the middle of the second epoch
        after = Worse(patience=1)
        run(tmp_path, resume=True, callbacks=[after])
        assert after.seen == [2.0, 2.5] and (after.best, after.waited) == (2.0, 1)

    def test_what_had_ended_stays_so(self, tmp_path):
        how = {"callbacks": [EarlyStopping(patience=1, min_delta=100.0)]}
        assert len(run(tmp_path, **how).epochs) == 2
        before = bits(tmp_path)
        assert len(run(tmp_path, resume=True, callbacks=[EarlyStopping(patience=1, min_delta=100.0)]).epochs) == 2
        assert bits(tmp_path) == before

    def test_a_run_may_get_one_later(self, tmp_path):
        run(tmp_path, epochs=1)
        assert len(run(tmp_path, resume=True, callbacks=[EarlyStopping(patience=1, min_delta=100.0)]).epochs) == 3

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"patience": 0}, "patience must be an integer of at least 1; got 0"),
            ({"min_delta": float("nan")}, "min_delta must not be negative"),
            ({"mode": "least"}, "mode must be 'min' or 'max'; got 'least'"),
        ],
    )
    def test_arguments(self, options, said):
        with pytest.raises(ArgumentError, match=said):
            EarlyStopping(**options)

    @pytest.mark.parametrize(("monitor", "validated"), [("los", True), ("epoch", True), ("validation_loss", False)])
    def test_a_figure_that_there_is_not(self, monitor, validated):
        with pytest.raises(ArgumentError, match="monitor must be a figure that the epochs have, of loss"):
            trained(batches(4), validation=batches(4) if validated else None, callbacks=[EarlyStopping(monitor)])

    @pytest.mark.parametrize(
        "state",
        [{}, {"monitor": "loss", "best": 1.0, "waited": 0}, {"monitor": "validation_loss", "best": 1.0, "waited": "1"}],
    )
    def test_a_state_of_something_else(self, state):
        with pytest.raises(CheckpointError, match="EarlyStopping"):
            EarlyStopping().load_state_dict(state)


class Recorder(Callback):
    name = "recorder"

    def __init__(self):
        self.events, self.count = [], 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def on_start(self, training):
        self.events.append("start")

    def on_batch(self, training):
        assert [len(x) for x, _ in training.batches] and isinstance(training, Training)
        self.events.append("batch")

    def on_loss(self, training, loss):
        self.events.append("loss")

    def on_gradients(self, training):
        assert all(p.grad is not None for p in training.model.parameters())
        self.events.append("gradients")

    def on_step(self, training, step):
        assert training.history.steps[-1] is step and training.progress.step == step.step + 1
        assert [p.shape[0] for p in training.predictions] == [len(x) for x, _ in training.batches]
        self.count += 1
        self.events.append("step")

    def on_validation(self, training, found):
        self.events.append(f"validation of {found.count}")

    def on_epoch(self, training, epoch):
        self.events.append("epoch")

    def on_end(self, training, error):
        self.events.append("end" if error is None else type(error).__name__)


class TestCallbacks:
    def test_they_are_called_in_order(self):
        one = Recorder()
        trained(batches(4, 4, 2), validation=batches(3), epochs=1, accumulate=2, callbacks=[one])
        step = ["batch", "loss", "gradients", "step"]
        assert one.events == [
            "start", "batch", "loss", "loss", "gradients", "step", *step, "validation of 3", "epoch", "end",
        ]  # fmt: skip

    def test_what_one_raises_ends_the_training(self):
        class Failing(Callback):
            def on_step(self, training, step):
                raise RuntimeError("enough")

        one = Recorder()
        with pytest.raises(RuntimeError, match="enough"):
            trained(batches(4), callbacks=[one, Failing()])
        assert one.events[-1] == "RuntimeError"

    def test_a_run_can_be_ended(self, tmp_path):
        class Ending(Callback):
            def on_step(self, training, step):
                if step.step == 2:
                    training.stop("for the test")
                    training.stop("again")

            def on_end(self, training, error):
                assert training.stopped == "for the test" and error is None

        assert len(run(tmp_path, callbacks=[Ending()]).steps) == 3
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.load().step == 3  # and what was done is saved

    def test_states_are_saved(self, tmp_path):
        run(tmp_path, max_steps=4, callbacks=[Recorder()])
        second = Recorder()
        run(tmp_path, max_steps=6, resume=True, callbacks=[second])
        assert second.count == 6

    def test_a_name_that_is_taken(self):
        taken = Recorder()
        taken.name = "model"
        for callbacks in ([taken], [Recorder(), Recorder()]):
            with pytest.raises(ArgumentError, match="two parts of the run are called"):
                trained(batches(4), callbacks=callbacks)


def test_accumulating_runs_resume_to_the_bit(tmp_path):
    options = {"accumulate": 2, "clip_norm": 1.0}
    run(tmp_path / "whole", **options)
    run(tmp_path / "parts", max_steps=6, **options)  # in the middle of the second epoch
    run(tmp_path / "parts", resume=True, **options)
    assert bits(tmp_path / "whole") == bits(tmp_path / "parts")


class TestScaling:
    def gradients(self, model):
        return [p.grad.numpy().copy() for p in model.parameters()]

    def test_scaled_and_divided_again_is_the_same(self):
        (pair,) = batches(5)
        model = plain()
        optimizer, scaler = optim.SGD(model.parameters(), 0.1), optim.GradScaler(init_scale=1024.0)
        F.cross_entropy(model(pair[0]), pair[1]).backward()
        expected = self.gradients(model)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(pair[0]), pair[1])).backward()
        assert_close(self.gradients(model), [1024 * g for g in expected])
        scaler.unscale_(optimizer)
        assert_close(self.gradients(model), expected)
        with pytest.raises(ArgumentError, match="called already"):
            scaler.unscale_(optimizer)
        before = [p.detach().numpy().copy() for p in model.parameters()]
        assert scaler.step(optimizer)
        assert_close(
            [p.detach().numpy() for p in model.parameters()],
            [b - 0.1 * g for b, g in zip(before, expected, strict=True)],
        )

    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    def test_an_overflow_leaves_the_step_out(self, bad):
        model = plain()
        optimizer = optim.SGD(model.parameters(), 0.1)
        scaler = optim.GradScaler(init_scale=8.0, growth_interval=2)
        scales = []
        for value in (1.0, bad, 1.0, 1.0, 1.0):
            before = [p.detach().numpy().copy() for p in model.parameters()]
            for p in model.parameters():
                p.grad = rg.full(p.shape, 1.0, dtype="float64")
            list(model.parameters())[1].grad.array[0] = value
            assert scaler.step(optimizer) == (value == 1.0)
            changed = [(p.detach().numpy() != b).any() for p, b in zip(model.parameters(), before, strict=True)]
            assert changed == [value == 1.0] * len(changed)
            scaler.update()
            scales.append(scaler.get_scale())
        assert scales == [8.0, 4.0, 4.0, 8.0, 8.0]

    def test_its_state(self):
        scaler = optim.GradScaler(growth_interval=3)
        model = plain()
        optimizer = optim.SGD(model.parameters(), 0.1)
        for p in model.parameters():
            p.grad = rg.ones(p.shape, dtype="float64")
        scaler.step(optimizer)
        scaler.update()
        other = optim.GradScaler(init_scale=1.0)
        other.load_state_dict(scaler.state_dict())
        assert other.state_dict() == scaler.state_dict() == {"scale": 65536.0, "good_steps": 1}
        for state in (
            {},
            {"scale": 0.0, "good_steps": 1},
            {"scale": 1.0, "good_steps": -1},
            {"scale": "x", "good_steps": 1},
        ):
            with pytest.raises(CheckpointError, match="not the state of a GradScaler"):
                other.load_state_dict(state)

    def test_without_it_nothing_changes(self):
        scaler = optim.GradScaler(enabled=False)
        loss = rg.tensor(3.0)
        assert scaler.scale(loss) is loss and scaler.get_scale() == 1.0
        model = plain()
        for p in model.parameters():
            p.grad = rg.ones(p.shape, dtype="float64")
        assert scaler.step(optim.SGD(model.parameters(), 0.1))
        scaler.update()

    @pytest.mark.parametrize(
        "options",
        [
            {"init_scale": 0.0},
            {"growth_factor": 1.0},
            {"backoff_factor": 1.0},
            {"growth_interval": 0},
            {"init_scale": np.inf},
        ],
    )
    def test_arguments(self, options):
        with pytest.raises(ArgumentError, match=f"GradScaler: {next(iter(options))} must be"):
            optim.GradScaler(**options)

    def test_update_without_a_step(self):
        with pytest.raises(ArgumentError, match="must come after step"):
            optim.GradScaler().update()

    def test_gradients_that_float16_would_lose(self, backend):
        """Gradients of 1e-9: products in fp16 make zeros of them, unless the loss is scaled."""
        if backend.device.name == "cpu":
            pytest.skip("the CPU computes as exactly as ever")
        device, found = backend.device.name, {}
        loader = [(x * 1.0, t) for x, t in batches(8, dtype=np.float32, device=device)]
        for precision in ("float32", "fp16"):
            model = plain("float32", device)
            before = [p.detach().to("cpu").numpy().copy() for p in model.parameters()]
            optimizer = optim.SGD(model.parameters(), lr=1e8)
            fit(
                model, loader, lambda p, t: F.cross_entropy(p, t) * 1e-8, optimizer, epochs=1, precision=precision,
                progress=False, capture=False,
            )  # fmt: skip
            after = [p.detach().to("cpu").numpy() for p in model.parameters()]
            found[precision] = [a - b for a, b in zip(after, before, strict=True)]
        for exact, half in zip(found["float32"], found["fp16"], strict=True):
            assert np.abs(exact).max() > 1e-3  # there is something to lose
            np.testing.assert_allclose(half, exact, 0, 0.01 * np.abs(exact).max())

    def test_a_scaled_step_cannot_be_captured(self):
        with pytest.raises(ArgumentError, match="cannot be captured with the scaled loss"):
            trained(batches(4), precision="fp16", capture=True)

    def test_an_unknown_precision(self):
        with pytest.raises(ArgumentError, match="precision must be one of float32"):
            trained(batches(4), precision="half")


class Inside(Callback):
    def on_gradients(self, training):
        pass


class TestCapture:
    @pytest.fixture
    def replays(self, monkeypatch):
        seen = []
        replay = rg.cuda.Graph.replay
        monkeypatch.setattr(rg.cuda.Graph, "replay", lambda graph: (seen.append(graph), replay(graph)))
        monkeypatch.setattr(loop, "graphed", lambda step, make=loop.graphed: make(step, warmup=1))
        return seen

    def on(self, backend, **options):
        device = backend.device.name
        loader = batches(4, 4, 4, dtype=np.float32, device=device)
        return trained(loader, plain("float32", device), epochs=1, **options)

    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({}, 2),
            ({"capture": False}, 0),
            ({"callbacks": [Inside()]}, 0),
            ({"accumulate": 3}, 0),
            ({"clip_norm": 0.1}, 2),
        ],
    )
    def test_steps_are_replayed_by_default(self, backend, replays, options, count):
        history, weights = self.on(backend, **options)
        assert len(replays) == (count if backend.device.name == "cuda" else 0)
        other, expected = self.on(backend, **{**options, "capture": False})
        assert [s.loss for s in history.steps] == [s.loss for s in other.steps]
        assert all((a == b).all() for a, b in zip(weights, expected, strict=True))

    def test_accumulated_steps_are_replayed(self, backend, replays):
        device = backend.device.name
        loader = batches(4, 3, 4, 3, 4, 3, dtype=np.float32, device=device)
        history, weights = trained(loader, plain("float32", device), epochs=1, accumulate=2)
        assert len(replays) == (2 if device == "cuda" else 0)
        other, expected = trained(loader, plain("float32", device), epochs=1, accumulate=2, capture=False)
        assert all((a == b).all() for a, b in zip(weights, expected, strict=True))
        assert [s.loss for s in history.steps] == [s.loss for s in other.steps]

    def test_what_cannot_be_captured_runs_as_ever(self, backend, replays, capsys):
        class Reading(nn.Linear):
            def forward(self, x):
                return super().forward(x) * (1.0 if x.sum().item() < 1e9 else 0.0)

        device = backend.device.name
        loader = batches(4, 4, 4, 4, dtype=np.float32, device=device)
        rg.manual_seed(1)
        history, _ = trained(loader, Reading(FEATURES, 4).to(device), epochs=1)
        assert len(history.steps) == 4 and not replays
        assert capsys.readouterr().err.count("note: the step is not captured") == (device == "cuda")
        if device == "cuda":
            with pytest.raises(CaptureError):
                trained(loader, Reading(FEATURES, 4).to(device), epochs=1, capture=True)

    def test_who_looks_inside_cannot_have_it(self):
        with pytest.raises(ArgumentError, match="cannot be captured with Inside, which looks inside"):
            trained(batches(4), callbacks=[Inside()], capture=True)


class TestTelling:
    def lines(self, **options):
        file = io.StringIO()
        trained(batches(4, 4), validation=batches(3), callbacks=[JSONLines(file, seconds=0)], **options)
        return [json.loads(line) for line in file.getvalue().splitlines()]

    def test_lines_of_json(self):
        lines = self.lines(metrics={"nothing": lambda p, t: float("nan")})
        assert [line["event"] for line in lines] == ["start", *["step", "step", "epoch"] * 2, "end"]
        assert lines[0]["batches"] == 2 and lines[0]["parameters"] == 59
        assert [line["step"] for line in lines if line["event"] == "step"] == [0, 1, 2, 3]
        assert lines[-2]["nothing"] is None and lines[-2]["validation_loss"] > 0  # what is no number is null
        first, last = (line for line in lines if line["event"] == "step" and line["step"] in (0, 3))
        assert first["remaining"] > 0 and last["remaining"] == 0 and first["waiting"] >= 0
        assert lines[-1]["stopped"] is None and lines[-1]["step"] == 4

    def test_steps_are_told_now_and_then(self):
        file = io.StringIO()
        trained(batches(*[4] * 20), callbacks=[JSONLines(file, seconds=3600)])
        assert "step" not in {json.loads(line)["event"] for line in file.getvalue().splitlines()}

    def test_how_it_ended(self):
        file = io.StringIO()
        broken = [(rg.tensor(np.zeros((2, 3))), rg.tensor(np.zeros(2, np.int64)))]
        with pytest.raises(rg.ShapeError):
            trained(broken, callbacks=[JSONLines(file)])
        assert json.loads(file.getvalue().splitlines()[-1])["stopped"].startswith("ShapeError: ")

    def test_a_bar_tells_speed_and_waiting(self, monkeypatch):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        model = plain()
        fit(
            model,
            batches(4, 4),
            F.cross_entropy,
            optim.SGD(model.parameters(), 0.1),
            epochs=1,
            on_step=lambda step: time.sleep(0.11),
        )  # it is drawn anew ten times a second at most
        assert "epoch 1/1" in terminal.getvalue()
        assert any("loss" in part and "/s, waiting" in part for part in terminal.getvalue().split("\r"))


def test_waiting_is_measured():
    class Slow(list):
        def __iter__(self):
            for batch in super().__iter__():
                time.sleep(0.02)
                yield batch

    history, _ = trained(Slow(batches(4, 4, 4)), epochs=1)
    assert 0.06 <= history.epochs[0].waiting <= history.epochs[0].seconds
