"""Watching a training: what is seen is so, nothing is changed by it, and it is kept and found again."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from _runs import BATCH, EPOCHS, SAMPLES, STEPS, How, bits, network, run

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import nn, optim
from rawgrad.engine.train import Kept, Look, Looks, Outcome, SeenDigits, TensorBoard, Watched, Watcher, fit
from rawgrad.engine.train.distributions import BINS, SHARES, distribution
from rawgrad.engine.train.looks import thinned
from rawgrad.engine.train.tensorboard import WRONG, sheet
from rawgrad.engine.train.watching import activations, digits_of
from rawgrad.engine.weights import save_state
from rawgrad.kernels._errors import ArgumentError, CheckpointError

draw = np.random.default_rng(0)


class Seen(Watched):
    """Keeps looks, and copies of what was looked at."""

    def __init__(self):
        self.looks, self.weights, self.gradients = [], [], []

    def on_look(self, training, look):
        self.looks.append(look)
        for into, pick in ((self.weights, lambda p: p), (self.gradients, lambda p: p.grad)):
            into.append({n: pick(p).detach().to("cpu").numpy().copy() for n, p in training.model.named_parameters()})


def like(found, values):
    """Whether a distribution is that of few enough values, as NumPy has it."""
    values = np.asarray(values, np.float64).ravel()
    assert (found.count, found.seen, found.not_finite) == (len(values), len(values), 0)
    assert found.zeros == (values == 0).sum()
    np.testing.assert_allclose(found.quantiles, np.quantile(values, SHARES), rtol=1e-12, atol=1e-300)
    assert [found.mean, found.std] == pytest.approx([values.mean(), values.std()], rel=1e-12)
    np.testing.assert_array_equal(found.histogram, np.histogram(values, found.edges)[0])


class TestDistribution:
    @pytest.mark.parametrize("shape", [(1,), (2, 3), (7, 1, 11), (64, 128)])
    def test_it_is_what_numpy_finds(self, shape):
        values = draw.standard_normal(shape)
        like(distribution(values), values)

    def test_several_arrays_are_one(self):
        a, b = draw.standard_normal((5, 4)), draw.standard_normal(9)
        like(distribution(a, b), np.concatenate([a.ravel(), b]))

    def test_of_very_many_it_looks_at_some_of_every_column(self):
        """Steps of 16 would see one column in four alone."""
        values = np.broadcast_to(np.arange(64.0), (4096, 64))
        found = distribution(values)
        assert found.count == values.size
        assert 0.8 * (1 << 13) < found.seen <= 1 << 13
        assert (found.quantiles[0], found.quantiles[-1]) == (0, 63)
        assert found.mean == pytest.approx(31.5, abs=0.1)
        assert found.histogram.sum() == found.seen

    def test_what_is_not_finite_is_counted_and_left_out(self):
        found = distribution(np.array([np.nan, 1.0, np.inf, 3.0, -np.inf, 0.0], np.float32))
        assert (found.seen, found.not_finite, found.zeros, found.histogram.sum()) == (6, 3, 1, 3)
        assert (found.quantiles[0], found.quantiles[4], found.quantiles[-1]) == (0, 1, 3)

    @pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
    def test_of_nothing_it_is_nan(self, values):
        found = distribution(np.array(values, np.float32))
        assert np.isnan([found.mean, found.std, *found.quantiles]).all()
        assert found.histogram.tolist() == [0] * BINS

    def test_equal_numbers(self):
        found = distribution(np.full(10, 0.1, np.float32))
        assert (found.std, found.histogram.sum()) == (pytest.approx(0, abs=1e-12), 10)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_dtypes(self, dtype):
        array = rg.tensor(draw.standard_normal(50)).to(dtype=dtype).array
        like(distribution(array), np.asarray(array, np.float64))


class TestWatching:
    @pytest.mark.parametrize("name", ["numpy", "numba"])
    def test_nothing_is_changed_by_it(self, name, tmp_path):
        """Dropout, batch norm, shuffling, shifts: the whole state is the same at the end."""
        how = How(name)
        run(tmp_path / "a", how)
        watcher = Watcher([Kept(Looks(tmp_path / "looks")), TensorBoard(tmp_path / "board")], every=1)
        run(tmp_path / "b", how, callbacks=[watcher])
        assert len(Looks(tmp_path / "looks").steps()) == STEPS
        assert bits(tmp_path / "a") == bits(tmp_path / "b")

    @pytest.mark.backends("emulated")
    def test_nor_of_a_captured_step(self, backend, tmp_path):
        """Watching is no reason not to capture."""
        how, few = How("emulated", capture=True), {"samples": 12, "epochs": 2}
        run(tmp_path / "a", how, **few)
        seen = Seen()
        run(tmp_path / "b", how, callbacks=[Watcher([seen], every=2)], **few)
        assert [look.step for look in seen.looks] == [1, 2, 4]
        assert bits(tmp_path / "a") == bits(tmp_path / "b")
        for name, values in seen.gradients[-1].items():
            like(seen.looks[-1].distributions["gradients"][name], values)

    def test_it_sees_what_is_there(self, tmp_path):
        seen = Seen()
        run(tmp_path, callbacks=[Watcher([seen], every=5)])
        assert [look.step for look in seen.looks] == [1, 5, 10, 15, 20, 21]
        assert [look.epoch for look in seen.looks] == [0, 0, 1, 2, 2, 2]
        for look, weights, gradients in zip(seen.looks, seen.weights, seen.gradients, strict=True):
            kinds = look.distributions
            assert list(kinds) == ["weights", "biases", "gradients", "activations"]
            for kind, ending in (("weights", "weight"), ("biases", "bias")):
                names = [name for name in weights if name.endswith(ending)]
                assert list(kinds[kind]) == [*names, "all"]
                for name in names:
                    like(kinds[kind][name], weights[name])
                like(kinds[kind]["all"], np.concatenate([weights[name].ravel() for name in names]))
            for name, values in gradients.items():
                like(kinds["gradients"][name], values)
            assert list(kinds["activations"]) == ["1 Linear", "2 BatchNorm1d", "3 ReLU", "5 Linear"]
            assert len(look.digits.truth) == BATCH or look.step % (STEPS // EPOCHS) == 0

    def test_the_digits_are_those_of_the_step_as_it_read_them(self):
        images, labels = draw.random((8, 1, 5, 4), np.float32), np.arange(8) % 3
        scores = []

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(20, 3)

            def forward(self, x):
                scores.append(self.layer(x.flatten(1)))
                return scores[-1]

        seen, model = Seen(), Model()
        batches = [(rg.tensor(images), rg.tensor(labels))]
        fit(model, batches, F.cross_entropy, optim.SGD(model.parameters(), lr=3.0), epochs=1, progress=False,
            callbacks=[Watcher([seen], digits=6, samples=2)])  # fmt: skip
        found = seen.looks[0].digits
        assert scores[1].shape == (2, 3)  # the second pass
        np.testing.assert_array_equal(found.images, np.rint(255 * images[:6, 0]))
        np.testing.assert_array_equal(found.truth, labels[:6])
        np.testing.assert_array_equal(found.read, scores[0].detach().numpy()[:6].argmax(1))

    def test_activations_are_those_of_evaluation(self):
        with rg.backend("numpy"):
            model = network()
            images = draw.random((9, 1, 8, 8), np.float32)
            model(rg.tensor(images))  # the running statistics
            before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
            model.train()
            model[3].eval()  # as somebody may wish
            found = activations(model, rg.tensor(images))
            assert [layer.training for layer in model] == [True, True, True, False, True, True]
            for name, value in model.state_dict().items():
                np.testing.assert_array_equal(value.numpy(), before[name])
            hidden = images.reshape(9, 64) @ before["1.weight"].T + before["1.bias"]
            like_roughly(found["1 Linear"], hidden)
            normed = (hidden - before["2.running_mean"]) / np.sqrt(before["2.running_var"] + 1e-5)
            like_roughly(found["3 ReLU"], np.maximum(normed, 0))

    def test_a_second_pass_that_draws_is_taken_back(self):
        class Noisy(nn.Module):
            def forward(self, x):
                return x + rg.randn(*x.shape)

        rg.manual_seed(5)
        activations(Noisy(), rg.zeros(2, 3))
        after = rg.randn(4).numpy()
        rg.manual_seed(5)
        np.testing.assert_array_equal(after, rg.randn(4).numpy())

    def test_inputs_that_are_no_pictures(self):
        few, labels, scores = draw.random((4, 7)), np.arange(4), np.eye(4)
        assert digits_of(few, labels, scores) is None
        pictures = draw.random((4, 1, 3, 3))
        assert digits_of(pictures, labels, scores) is not None
        assert digits_of(pictures, labels.astype(np.float32), scores) is None
        assert digits_of(pictures, labels, scores[:, :1]) is None
        assert digits_of(draw.random((4, 3, 3, 3)), labels, scores) is None
        assert digits_of(pictures[:0], labels[:0], scores[:0]) is None
        wide = digits_of(4 * pictures - 2, labels, scores)
        assert (wide.images.min(), wide.images.max() > 200) == (0, True)

    @pytest.mark.parametrize(("name", "value"), [("every", 0), ("every", True), ("digits", -1), ("samples", 1.5)])
    def test_wrong_arguments(self, name, value):
        with pytest.raises(ArgumentError, match=f"Watcher: {name} must be an integer of at least"):
            Watcher([], **{name: value})

    def test_a_full_disk_ends_the_watching_alone(self, tmp_path, capsys):
        (tmp_path / "looks").write_text("a file")
        seen = Seen()
        run(tmp_path / "run", callbacks=[Watcher([Kept(Looks(tmp_path / "looks")), seen], every=7)])
        [note] = [line for line in capsys.readouterr().err.splitlines() if "note" in line]
        assert "Kept cannot write" in note and "the training goes on without it" in note
        assert [look.step for look in seen.looks] == [1, 7, 14, 21]


def like_roughly(found, values):
    np.testing.assert_allclose(found.quantiles, np.quantile(values, SHARES), rtol=1e-5, atol=1e-6)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestLooks:
    def test_a_resumed_run_goes_on_with_them(self, tmp_path):
        def watched(name, **options):
            kept = Kept(Looks(tmp_path / f"{name}-looks"))
            run(tmp_path / name, callbacks=[Watcher([kept], every=3)], **options)

        watched("whole")
        watched("broken", max_steps=11)
        assert Looks(tmp_path / "broken-looks").steps() == [1, 3, 6, 9, 11]
        # As after a kill: later looks are there, of steps that were not saved.
        for step in (12, 15):
            source = tmp_path / "whole-looks" / f"step-{step:06d}.safetensors"
            (tmp_path / "broken-looks" / source.name).write_bytes(source.read_bytes()[::-1])
        (tmp_path / "broken-looks" / ".step-000018.safetensors.1.partial").write_text("half")
        watched("broken", resume=True)
        whole, broken = files(tmp_path / "whole-looks"), files(tmp_path / "broken-looks")
        del broken["step-000011.safetensors"]  # the end of the first part
        assert broken == whole

    def test_a_run_from_the_start_forgets_another(self, tmp_path):
        looks = Looks(tmp_path)
        (tmp_path / "step-000500.safetensors").write_text("old")
        (tmp_path / "test.safetensors").write_text("old")
        (tmp_path / "step-notes.txt").write_text("not ours")
        run(tmp_path / "run", callbacks=[Watcher([Kept(looks)], every=20)], max_steps=1)
        assert looks.steps() == [1]
        assert not (tmp_path / "test.safetensors").exists()
        assert (tmp_path / "step-notes.txt").exists()

    def test_they_come_back_as_they_were(self, tmp_path):
        kinds = {"weights": {"a": distribution(np.arange(5.0))}, "biases": {}, "gradients": {}}
        kinds["gradients"] = {"b": distribution(np.array([np.nan]))}
        digits = SeenDigits(np.zeros((2, 3, 4), np.uint8), np.array([1, 2]), np.array([1, 3]))
        looks = Looks(tmp_path / "new" / "folder")
        assert looks.steps() == []
        for shown in (digits, None):
            looks.save(Look(7, 1, kinds, shown))
            found = looks.load(7)
            assert repr(found) == repr(Look(7, 1, kinds, shown))

    def test_damage_is_noticed(self, tmp_path):
        looks = Looks(tmp_path)
        looks.save(Look(3, 0, {"weights": {"a": distribution(np.arange(5.0))}}, None))
        path = tmp_path / "step-000003.safetensors"
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"step-000003\.safetensors: damaged"):
            looks.load(3)
        with pytest.raises(CheckpointError, match="there is no such file"):
            looks.load(4)

    @pytest.mark.parametrize("state", [
        {}, 3, {"step": 1, "epoch": 0, "distributions": {"weights": {"names": ["a"]}}, "digits": None},
        {"step": 1, "epoch": 0, "distributions": {}, "digits": {"images": 3}},
        {"step": 1, "epoch": 0, "distributions": {}, "digits":
            {"images": np.zeros((2, 3, 3), np.uint8), "truth": np.zeros(3, np.int64), "read": np.zeros(2, np.int64)}},
        {"step": 1, "epoch": 0, "digits": None, "distributions": {"weights": {
            "names": ["a"], "numbers": np.zeros((1, 6)), "quantiles": np.zeros((1, 3)), "histograms": np.zeros((1, 40))
        }}},
    ])  # fmt: skip
    def test_files_of_something_else_are_refused(self, state, tmp_path):
        save_state(tmp_path / "step-000001.safetensors", state)
        save_state(tmp_path / "test.safetensors", state)
        with pytest.raises(CheckpointError, match="is not a look at a training"):
            Looks(tmp_path).load(1)
        with pytest.raises(CheckpointError, match="is not what came out of a test"):
            Looks(tmp_path).outcome()

    def test_the_test(self, tmp_path):
        looks = Looks(tmp_path)
        assert looks.outcome() is None
        digits = SeenDigits(np.zeros((1, 3, 4), np.uint8), np.array([1]), np.array([0]), np.array([0.5]))
        outcome = Outcome(np.array([[3, 0], [1, 2]]), digits, 6, 5, ["a", "b"])
        looks.save_outcome(outcome)
        assert repr(looks.outcome()) == repr(outcome)

    @pytest.mark.parametrize(("count", "most", "expected"), [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (10, 2, [0, 9])])
    def test_thinned(self, count, most, expected):
        assert thinned(list(range(count)), most) == expected


class TestTensorBoard:
    def test_the_events_say_what_was_seen(self, tmp_path):
        seen = Seen()
        with TensorBoard(tmp_path / "board", every=4) as board:
            watcher = Watcher([seen, board], every=10)
            history = run(tmp_path / "run", callbacks=[watcher], metrics={"minus": lambda p, t: -1.0})
            board.picture("a_picture", np.zeros((4, 5, 3), np.uint8), 21)
        found = events(tmp_path / "board")
        losses = [step.loss for step in history.steps]
        sizes = ([BATCH] * (SAMPLES // BATCH) + [SAMPLES % BATCH]) * EPOCHS
        points = {1: (0, 1), 4: (1, 4), 7: (4, 7), 8: (7, 8), 12: (8, 12), 14: (12, 14), 16: (14, 16), 20: (16, 20)}
        for step, (first, last) in points.items():
            expected = np.average(losses[first:last], weights=sizes[first:last])
            assert found["loss/train"][step].simple_value == pytest.approx(expected, rel=1e-6)
        assert set(found["loss/train"]) == {*points, 21}  # the last epoch's end
        assert set(found["learning_rate"]) == {1, 4, 8, 12, 16, 20}
        assert found["learning_rate"][8].simple_value == pytest.approx(history.steps[7].lr)
        for number, epoch in enumerate(history.epochs, 1):
            step = number * STEPS // EPOCHS
            for name, value in (("loss", epoch.validation_loss), ("accuracy", epoch.validation_accuracy)):
                assert found[f"{name}/validation"][step].simple_value == pytest.approx(value, rel=1e-6)
            assert found["minus/validation"][step].simple_value == -1
        for look in seen.looks:
            for kind, named in look.distributions.items():
                for name, expected in named.items():
                    histogram = found[f"{kind}/{name}".replace(" ", "_")][look.step].histo
                    assert list(histogram.bucket) == expected.histogram.tolist()
                    assert [histogram.min, histogram.max] == [expected.quantiles[0], expected.quantiles[-1]]
                    assert histogram.sum == pytest.approx(expected.mean * expected.count, abs=1e-6)
            picture = found["digits/step"][look.step].image
            assert (picture.height, picture.width) == (9, 90)
        assert (found["a_picture"][21].image.height, found["a_picture"][21].image.width) == (4, 5)

    def test_a_run_that_goes_on_hides_the_later_steps(self, tmp_path):
        for options in ({"max_steps": 9}, {"resume": True}):
            with TensorBoard(tmp_path / "board") as board:
                run(tmp_path / "run", callbacks=[board], **options)
        first, second = sorted((tmp_path / "board").iterdir(), key=lambda path: path.suffix)
        assert starts(first) == [1]
        assert starts(second) == [10]
        assert set(events(tmp_path / "board")["loss/train"]) == {1, 7, 9, 10, 14, 20, 21}

    def test_without_tensorboardx_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
        with pytest.raises(ArgumentError, match=r"needs tensorboardX.*pip install 'rawgrad\[tensorboard\]'"):
            TensorBoard(tmp_path / "board")
        assert not (tmp_path / "board").exists()

    def test_wrong_arguments(self, tmp_path):
        with pytest.raises(ArgumentError, match="TensorBoard: every must be"):
            TensorBoard(tmp_path, every=0)

    def test_a_sheet_of_digits(self):
        images = np.array([[[0, 255]], [[255, 0]], [[0, 51]]], np.uint8)
        found = sheet(SeenDigits(images, np.array([1, 2, 3]), np.array([1, 0, 3])), columns=2)
        assert found.shape == (4, 6, 3)
        assert found[0].tolist() == [[255] * 3, [0] * 3, [255] * 3, [0] * 3, list(WRONG), [255] * 3]
        assert found[2].tolist() == [[255] * 3, [204] * 3, *[[255] * 3] * 4]


def records(path):
    """The events of a file: each stands between its length and two checksums."""
    from tensorboardX.proto.event_pb2 import Event

    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        found.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


def starts(path):
    """The steps from which a file hides what others have."""
    return [event.step for event in records(path) if event.HasField("session_log")]


def events(folder):
    """The values of all files of a folder, by name and step."""
    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix):
        for event in records(path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value
    return found
