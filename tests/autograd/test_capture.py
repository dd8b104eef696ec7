"""``rg.cuda.Graph`` and ``rg.cuda.graphed``: a captured step does what the step does, and refuses what it cannot."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import nn, optim
from rawgrad.kernels import _graph
from rawgrad.kernels._errors import CaptureError, GradientError

pytestmark = pytest.mark.backends("emulated", "cuda")
DRAW = np.random.default_rng(3)
#: Batches of four, and odd ones of three in between, as at the end of an epoch.
BATCHES = [(DRAW.normal(size=(n, 6)).astype(np.float32), DRAW.integers(0, 3, n)) for n in (4, 4, 4, 4, 3, 4, 4, 3, 4)]

Optimizer = Callable[[Any], Any]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def begin(backend: Any) -> None:
    rg.manual_seed(0)


def there(values: Any, requires_grad: bool = False) -> rg.Tensor:
    return rg.tensor(values, device="cuda", requires_grad=requires_grad)


def on_host(tensor: Any) -> np.ndarray:
    return tensor.detach().to("cpu").numpy().copy()


class Training:
    """A small network with batch norm and dropout, and a schedule."""

    def __init__(self, optimizer: Optimizer = OPTIMIZERS["AdamW"], set_to_none: bool = True) -> None:
        rg.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)]
        self.model = nn.Sequential(*layers).to("cuda")
        self.optimizer = optimizer(self.model.parameters())
        self.schedule = optim.lr_scheduler.CosineAnnealingLR(self.optimizer, len(BATCHES))
        self.set_to_none, self.clip = set_to_none, True

    def step(self, x: rg.Tensor, labels: rg.Tensor) -> rg.Tensor:
        loss = F.cross_entropy(self.model(x), labels)
        self.optimizer.zero_grad(self.set_to_none)
        loss.backward()
        if self.clip:
            optim.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss

    def run(self, step: Callable[..., Any]) -> dict[str, Any]:
        """All batches; everything that the training leaves, to be compared."""
        losses = []
        for x, labels in BATCHES:
            losses.append(step(there(x), there(labels)).item())
            self.schedule.step()
        state = self.optimizer.state_dict()["state"]
        return {
            "losses": losses,
            "parameters": [on_host(p) for p in self.model.parameters()],
            "gradients": [on_host(p.grad) for p in self.model.parameters()],
            "steps": [one["step"] for one in state.values()],
            "generator": rg.autograd.default_generator.get_state(),
        }


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_equal(found, expected)


class TestTraining:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_captured_steps_are_the_steps_bit_for_bit(self, name: str) -> None:
        eager, captured = Training(OPTIMIZERS[name]), Training(OPTIMIZERS[name])
        rg.manual_seed(1)
        expected = eager.run(eager.step)
        rg.manual_seed(1)
        step = rg.cuda.graphed(captured.step, warmup=2)
        assert_same(captured.run(step), expected)
        assert step.graph is not None and step.graph.is_captured
        assert len(set(expected["losses"])) == len(BATCHES)

    def test_without_a_step_before_it_and_with_gradients_filled_with_zeros(self) -> None:
        """The optimizer's state is made once, although it comes up in the capture."""
        eager, captured = Training(set_to_none=False), Training(set_to_none=False)
        x, labels = map(there, BATCHES[0])
        rg.manual_seed(1)
        expected = [eager.step(x, labels).item() for _ in range(3)]
        rg.manual_seed(1)
        graph = rg.cuda.Graph()
        before = [on_host(p) for p in captured.model.parameters()]
        with graph.capture():
            loss = captured.step(x, labels)
        assert_same([on_host(p) for p in captured.model.parameters()], before)  # a capture runs nothing
        assert rg.autograd.default_generator.get_state() == (1, 0)
        found = []
        for _ in range(3):
            graph.replay()
            found.append(loss.item())
        assert found == expected
        assert_same([on_host(p) for p in captured.model.parameters()], [on_host(p) for p in eager.model.parameters()])

    def test_draws_in_between_are_those_of_a_run_without_capture(self) -> None:
        x = there(np.ones(64, np.float32))
        rg.manual_seed(5)
        masks = [on_host(F.dropout(x)) for _ in range(6)]
        rg.manual_seed(5)
        graph = rg.cuda.Graph()
        with graph.capture():
            first, second = F.dropout(x), F.dropout(x)
        graph.replay()
        assert_same([on_host(first), on_host(second)], masks[:2])
        assert_same(on_host(F.dropout(x)), masks[2])
        graph.replay()
        assert_same([on_host(first), on_host(second)], masks[3:5])
        assert_same(on_host(F.dropout(x)), masks[5])

    def test_gradients_of_passes_add_up_in_one_array(self) -> None:
        w, x = there([2.0], requires_grad=True), there([3.0])
        w.grad = there([100.0])
        graph = rg.cuda.Graph()
        with graph.capture():
            (w * x).sum().backward()
        for expected in (103, 106, 109):
            graph.replay()
            assert w.grad.item() == expected

    @pytest.mark.parametrize("clip", [False, True])
    def test_the_gradients_of_a_replay_are_shown_again(self, clip: bool) -> None:
        training = Training()
        training.clip = clip
        step = rg.cuda.graphed(training.step, warmup=1)
        x, labels = map(there, BATCHES[0])
        for _ in range(2):
            step(x, labels)
        own = [p.grad for p in training.model.parameters()]
        training.optimizer.zero_grad()
        training.step(*map(there, BATCHES[4]))  # an odd batch
        assert all(p.grad is not grad for p, grad in zip(training.model.parameters(), own, strict=True))
        step(x, labels)
        assert all(p.grad is grad for p, grad in zip(training.model.parameters(), own, strict=True))

    def test_batch_norm_and_outputs_in_containers(self) -> None:
        def run(way: Any) -> list[np.ndarray]:
            rg.manual_seed(0)
            norm = nn.BatchNorm2d(2).to("cuda")
            images = DRAW_IMAGES
            found = []
            forward = way(lambda x: {"y": [norm(x)], "n": 3})
            for image in images:
                out = forward(there(image))
                assert out["n"] == 3 and len(out["y"]) == 1
                found.append(on_host(out["y"][0]))
            return [*found, on_host(norm.running_mean), on_host(norm.running_var)]

        assert_same(run(lambda f: rg.cuda.graphed(f, warmup=1)), run(lambda f: f))


DRAW_IMAGES = [DRAW.normal(size=(2, 2, 3, 3)).astype(np.float32) for _ in range(4)]


class TestReplay:
    def test_what_was_dropped_is_kept_by_the_graph(self) -> None:
        x, y, w = there([1.0, 2.0]), there([5.0, 7.0]), there([3.0, 4.0], requires_grad=True)
        mask, index, graph = there([True, False]), there(np.array([1, 0])), rg.cuda.Graph()
        with graph.capture():
            out = (x + y) * w
            taken = F.embedding(index, w.detach().reshape(2, 1))
            chosen = F.where(mask, w.detach(), 0.0)
            fixed, power = F.where(mask, 1.0, 2.0), (2.0 ** w.detach())
            loss = out.sum()
            loss.backward()
        gradient = w.grad
        del x, y, w, index, mask
        gc.collect()
        rg.zeros(64, device="cuda")  # might get the memory
        graph.replay()
        assert_same(on_host(out), np.float32([18, 36]))
        assert_same(on_host(taken)[:, 0], np.float32([4, 3]))
        assert fixed.tolist() == [1, 2] and power.tolist() == [8, 16]
        assert chosen.tolist() == [3, 0]
        assert loss.item() == 54 and gradient.tolist() == [6, 9]

    @pytest.mark.parametrize(
        ("operation", "expected"),
        [
            (lambda x: x + 1, [2, 5]),
            (lambda x: x == 4, [False, True]),
            (lambda x: x.argmax(), 1),
            (lambda x: x.argmin(0), 0),
            (lambda x: x.bool().all(), True),
            (lambda x: rg.zeros(2, device="cuda").copy_(x), [1, 4]),
            (lambda x: F.cat([x, x]), [1, 4, 1, 4]),
            (lambda x: F.cat([x] * 65)[-3:], [4, 1, 4]),
            (lambda x: x.view(2, 1).t()[0, 1:], [4]),
        ],
    )
    def test_each_way_of_using_a_tensor_keeps_it(self, operation: Callable[[Any], Any], expected: Any) -> None:
        x, graph = there([1.0, 4.0]), rg.cuda.Graph()
        with graph.capture():
            found = operation(x)
        del x
        graph.replay()
        assert found.tolist() == expected

    def test_a_captured_step_of_the_optimizer_alone_keeps_the_gradients(self) -> None:
        w, graph = there([1.0], requires_grad=True), rg.cuda.Graph()
        (w * 2).sum().backward()
        optimizer = optim.SGD([w], lr=0.25)
        with graph.capture():
            optimizer.step()
        del optimizer
        w.grad = None
        gc.collect()
        for expected in (0.5, 0.0):
            graph.replay()
            assert w.item() == expected

    def test_another_value_goes_where_the_old_one_was(self) -> None:
        x, graph = there([1.0]), rg.cuda.Graph()
        with graph.capture():
            y = x * 2
        for value in (3.0, 5.0):
            x.fill_(value)
            graph.replay()
            assert y.item() == 2 * value

    def test_a_stale_graph_of_autograd_is_refused(self) -> None:
        x, w, graph = there([3.0]), there([2.0], requires_grad=True), rg.cuda.Graph()
        with graph.capture():
            scaled = x * 10
            with rg.no_grad():
                w.mul_(0.5)
        graph.replay()
        of_output, of_parameter, of_input = scaled * w, w * w, x * w.detach().requires_grad_()
        graph.replay()
        for stale in (of_output, of_parameter):
            with pytest.raises(GradientError, match="modified in place"):
                stale.backward()
        assert w.item() == 0.5 and of_input.item() == 3
        of_input.backward()  # x was read, not written

    def test_replaced_parameters_are_refused_and_written_ones_are_not(self) -> None:
        training, graph = Training(), rg.cuda.Graph()
        x, labels = map(there, BATCHES[0])
        training.step(x, labels)
        with graph.capture():
            training.step(x, labels)
        weight = next(iter(training.model.parameters()))
        with rg.no_grad():
            weight.mul_(0.5)
        graph.replay()
        weight.data = weight.detach().clone()
        with pytest.raises(CaptureError, match=r"a tensor of shape \(8, 6\) .* got another array"):
            graph.replay()

    def test_what_the_optimizer_cannot_change(self) -> None:
        training, graph = Training(), rg.cuda.Graph()
        x, labels = map(there, BATCHES[0])
        training.step(x, labels)
        saved = training.optimizer.state_dict()
        with graph.capture():
            training.step(x, labels)
        group = training.optimizer.param_groups[0]
        group["lr"] = 0.5  # may change
        graph.replay()
        group["eps"] = 0.25
        with pytest.raises(CaptureError, match=r"AdamW's eps was 1e-08 when the step was captured and is now 0.25"):
            graph.replay()
        group["eps"] = 1e-8
        graph.replay()
        training.optimizer.load_state_dict(saved)
        with pytest.raises(CaptureError, match="AdamW's state was replaced"):
            graph.replay()

    def test_another_seed_is_refused(self) -> None:
        x, graph = there([1.0]), rg.cuda.Graph()
        with graph.capture():
            F.dropout(x)
        rg.manual_seed(7)
        with pytest.raises(CaptureError, match="seeded anew"):
            graph.replay()

    def test_a_label_out_of_range_is_reported_in_each_replay(self, backend: Any) -> None:
        logits, labels, graph = there(np.zeros((2, 3), np.float32)), there(np.array([0, 1])), rg.cuda.Graph()
        F.cross_entropy(logits, labels)
        with graph.capture():
            F.cross_entropy(logits, labels)
        for _ in range(2):
            labels.copy_(there(np.array([0, 9])))
            with pytest.raises(rg.IndexRangeError, match="9"):
                graph.replay()
                backend.synchronize()
            labels.fill_(2)
            graph.replay()
            backend.synchronize()


class TestRefusals:
    @pytest.mark.parametrize(
        ("read", "said"),
        [
            (lambda x: x.item(), "values were read on the host"),
            (lambda x: x.tolist(), "values were read on the host"),
            (lambda x: x.to("cpu"), "values were read on the host"),
            (lambda x: float(x), "values were read on the host"),
            (lambda x: print(x), "values were read on the host"),
            (lambda x: f"{x:.3f}", "values were read on the host"),
            (lambda x: 1 if x > 0 else 2, "values were read on the host"),
            (lambda x: rg.cuda.synchronize(), "the GPU was waited for"),
            (lambda x: rg.tensor([1.0]).to("cuda"), "values of the host were copied"),
            (lambda x: x[there(np.array([0]))], "values of the host were copied"),
            (lambda x: x[x.long()], "an index tensor was looked through"),
            (lambda x: F.nll_loss(x.reshape(1, 1), x.long() * 0), "labels were looked through"),
            (lambda x: x.copy_(rg.ones(1)), "values of the host were copied"),
            (lambda x: rg.randn(1, device="cuda"), "random numbers were drawn on the host"),
            (lambda x: F.dropout(rg.ones(3)), "random numbers were drawn on the host"),
            (lambda x: rg.cuda.Graph().warm_up().__enter__(), "a warm-up or capture was begun"),
            (lambda x: rg.cuda.Graph().capture().__enter__(), "a capture was begun"),
            (lambda x: optim.lr_scheduler.StepLR(optim.SGD([x], lr=1), 1).step(), "a schedule was stepped"),
        ],
    )
    def test_in_a_capture(self, read: Callable[[Any], Any], said: str) -> None:
        x, graph = there([1.0]), rg.cuda.Graph()
        with pytest.raises(CaptureError, match=f"{said}.* while a step is captured; "), graph.capture():
            read(x * 2)
        assert not graph.is_captured and _graph.under_way == 0
        with graph.capture():  # nothing is left half open
            y = x * 2
        graph.replay()
        assert y.item() == 2

    def test_a_replay_in_a_capture(self) -> None:
        x, graph = there([1.0]), rg.cuda.Graph()
        with graph.capture():
            y = x * 2
        with pytest.raises(CaptureError, match="a graph was replayed while"), rg.cuda.Graph().capture():
            graph.replay()
        graph.replay()
        assert y.item() == 2

    def test_a_second_capture_and_a_replay_before_the_first(self) -> None:
        x, graph = there([1.0]), rg.cuda.Graph()
        with pytest.raises(CaptureError, match="not captured yet"):
            graph.replay()
        with graph.capture():
            y = x * 2
        with pytest.raises(CaptureError, match="captured already"), graph.capture():
            pytest.fail("must not get here")
        graph.replay()
        assert y.item() == 2

    def test_anomaly_mode(self) -> None:
        with rg.autograd.detect_anomaly(), pytest.raises(CaptureError, match="detect_anomaly"):
            rg.cuda.Graph().capture().__enter__()

    def test_an_error_leaves_gradients_and_the_generator_as_they_were(self) -> None:
        training, graph = Training(), rg.cuda.Graph()
        x, labels = map(there, BATCHES[0])
        training.step(x, labels)
        before = [p.grad for p in training.model.parameters()]
        generator = rg.autograd.default_generator.get_state()
        with pytest.raises(ZeroDivisionError), graph.capture():
            training.step(x, labels)
            _ = 1 / 0
        assert all(p.grad is grad for p, grad in zip(training.model.parameters(), before, strict=True))
        assert rg.autograd.default_generator.get_state() == generator
        assert training.step(x, labels).item() > 0

    def test_another_thread_goes_on(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        x, graph = there([1.0]), rg.cuda.Graph()

        def elsewhere(name: str) -> float:
            with rg.backend(name):
                return float((rg.tensor([4.0], device="cuda") * 2).item())

        with ThreadPoolExecutor(1) as pool, graph.capture():
            y = x * 2
            from rawgrad.kernels._dispatch import current_choice

            assert pool.submit(elsewhere, current_choice().for_device("cuda") or "cuda").result() == 8
        graph.replay()
        assert y.item() == 2


class TestGraphed:
    def test_on_the_cpu_it_is_the_function(self) -> None:
        step = rg.cuda.graphed(lambda x: x * 2, warmup=1)
        assert [step(rg.tensor([float(i)])).item() for i in range(4)] == [0, 2, 4, 6] and step.graph is None

    def test_bad_arguments(self) -> None:
        for warmup in (0, True, "3"):
            with pytest.raises(rg.ArgumentError, match="warmup must be a number of calls, at least 1; got"):
                rg.cuda.graphed(abs, warmup=warmup)  # type: ignore[arg-type]
        with pytest.raises(rg.ArgumentError, match="input 1 must be a tensor without gradients; got float"):
            rg.cuda.graphed(lambda x, y: x)(there([1.0]), 2.0)
        with pytest.raises(rg.ArgumentError, match="input 0 .* got one that requires gradients"):
            rg.cuda.graphed(lambda x: x)(there([1.0], requires_grad=True))

    def test_a_step_that_cannot_be_captured_says_so_and_runs_by_itself_no_further(self) -> None:
        step = rg.cuda.graphed(lambda x: x * (2 if x.item() > 0 else 3), warmup=1)
        assert step(there([1.0])).item() == 2
        for _ in range(2):
            with pytest.raises(CaptureError, match="read on the host"):
                step(there([1.0]))

    def test_its_inputs_are_copied_and_its_outputs_are_the_same_tensors(self) -> None:
        step = rg.cuda.graphed(lambda x: x + 1, warmup=1)
        inputs = [there([float(i)]) for i in range(4)]
        first, second, third, _ = [step(x) for x in inputs]
        assert first is not second and second is third and third.item() == 4
        assert [x.item() for x in inputs] == [0, 1, 2, 3] and not second.requires_grad
