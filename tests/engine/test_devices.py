"""Layers, losses, optimizers and what is around them on device ``cuda``, beside the CPU.

Both compute in float32 from the same numbers.  How far the device may be from the truth is not chosen: it
is a few times what the CPU's own float32 is from float64, as for kernels (``tests/kernels/_tolerance.py``).
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
from _tolerance import FACTOR, FLOOR_ULPS, assert_within
from engine_cases import LAYERS, LOSSES, OPTIMIZERS, PATTERN, gradients, starts, target_of

import rawgrad as rg
from rawgrad import data, nn, optim
from rawgrad.autograd.random import Generator
from rawgrad.engine.metrics import accuracy, confusion_matrix
from rawgrad.engine.train import evaluate, fit, predictions_of
from rawgrad.engine.weights import ModelInfo, load_state, load_weights, save_state, save_weights
from rawgrad.kernels._errors import CheckpointError, DeviceError, DtypeError, IndexRangeError, ShapeError

pytestmark = pytest.mark.backends("emulated", "cuda")
SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def host(tensor):
    return tensor.detach().to("cpu").numpy().copy()  # what is on the host would change with the tensor


def bits(tensor):
    array = host(tensor)
    return array.dtype, array.shape, array.tobytes()


def assert_agree(compute, device):
    """``compute(device, dtype)``, arrays by name, must agree on ``device`` and the CPU in either dtype."""
    exact, naive = compute("cpu", DOUBLE), compute("cpu", SINGLE)
    for dtype in (SINGLE, DOUBLE):
        found = compute(device, dtype)
        assert found.keys() == exact.keys()
        for name, array in found.items():
            assert array.dtype == (naive if dtype == SINGLE else exact)[name].dtype, name
            largest, error = (
                float(np.max(np.abs(values), initial=0)) for values in (exact[name], naive[name] - exact[name])
            )
            budget = (FACTOR * error / np.finfo(SINGLE).eps + FLOOR_ULPS * largest) * np.finfo(dtype).eps
            try:
                assert_within(array, exact[name], budget)
            except AssertionError as failure:
                raise AssertionError(f"{name} in {dtype}: {failure}") from None


def drawn(stream, shape):
    """Numbers that float32 holds exactly."""
    return stream.normal(size=shape).astype(SINGLE)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(backend, name):
    make, shape = LAYERS[name]

    def compute(device, dtype):
        stream, found = np.random.default_rng(1), {}
        layer = make(nn)
        for parameter in layer.parameters():  # no ones and zeros, which would hide mistakes
            parameter.array[...] = drawn(stream, parameter.shape)
        assert layer.to(device, dtype) is layer
        for step, training in enumerate((True, True, False)):
            layer.train(training).zero_grad()
            x = rg.tensor(drawn(stream, shape).astype(dtype), device=device, requires_grad=True)
            y = layer(x)
            assert y.device == device
            (y * rg.tensor(drawn(stream, y.shape).astype(dtype), device=device)).sum().backward()
            found |= {f"step {step}, output": host(y), f"step {step}, gradient of the input": host(x.grad)}
            found |= {f"step {step}, gradient of {n}": host(p.grad) for n, p in layer.named_parameters()}
            found |= {f"step {step}, {n}": host(b) for n, b in layer.named_buffers()}
        return found

    assert_agree(compute, backend.device.name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(backend, name, reduction):
    make, kind, _ = LOSSES[name]

    def compute(device, dtype):
        def there(values):
            values = np.asarray(values)
            return rg.tensor(values.astype(SINGLE).astype(dtype) if values.dtype.kind == "f" else values, device=device)

        stream = np.random.default_rng(5)
        x = there(stream.normal(size=(6, 4))).requires_grad_()
        loss = make(nn, there, {"reduction": reduction})(x, there(target_of(kind, stream)))
        loss.sum().backward()
        return {"loss": host(loss), "gradient": host(x.grad)}

    assert_agree(compute, backend.device.name)


def test_embedding(backend):
    def compute(device, dtype):
        layer = nn.Embedding(6, 3, padding_idx=-2)
        layer.weight.array[...] = drawn(np.random.default_rng(0), (6, 3))
        layer.to(device, dtype)
        y = layer(rg.tensor(np.array([[0, 4, 5], [5, 5, 1]]), device=device))
        (y**2).sum().backward()
        return {"rows": host(y), "gradient": host(layer.weight.grad)}

    assert_agree(compute, backend.device.name)


def test_every_module_is_compared():
    made = [make(nn) for make, _ in LAYERS.values()]
    made += [make(nn, rg.tensor, {}) for make, _, _ in LOSSES.values()]
    public = (getattr(nn, name) for name in nn.__all__)
    modules = {kind for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert modules - {type(module) for module in made} == {
        nn.Module, nn.Sequential, nn.ModuleList, nn.Dropout, nn.Embedding
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
def test_dropout_is_the_same_bit_for_bit(backend, p, dtype):
    def compute(device):
        rg.manual_seed(2**63 + 3)
        layer, found = nn.Dropout(p), []
        for shape in ((1023,), (3, 7, 5), (1,), (0, 4)):  # no multiples of four, which the words come in
            x = rg.tensor(drawn(np.random.default_rng(0), shape).astype(dtype), device=device, requires_grad=True)
            y = layer(x)
            y.sum().backward()
            found += [bits(y), bits(x.grad)]
        return found

    assert compute(backend.device.name) == compute("cpu")


class TestOptimizers:
    @pytest.mark.parametrize("pattern", [[(1, 1, 1)] * 5, PATTERN], ids=["all", "some"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_steps(self, backend, name, pattern):
        def compute(device, dtype):
            def there(values):
                return rg.tensor(np.asarray(values, SINGLE).astype(dtype), device=device)

            params, found = [there(value).requires_grad_() for value in starts()], {}
            optimizer = OPTIMIZERS[name](optim, params)
            for step, present in enumerate(pattern):
                for p, grad, has in zip(params, gradients(step), present, strict=True):
                    p.grad = there(grad) if has else None
                optimizer.step()
                found |= {f"step {step}, parameter {i}": host(p) for i, p in enumerate(params)}
            counts = {n: state["step"] for n, state in optimizer.state_dict()["state"].items()}
            return {**found, "counts": np.array([counts[n] for n in sorted(counts)])}

        assert_agree(compute, backend.device.name)

    def test_groups_clipping_and_a_schedule(self, backend):
        def compute(device, dtype):
            rg.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(device, dtype)
            optimizer = optim.SGD(
                [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5, "momentum": 0.9}], 0.1
            )
            schedule = optim.lr_scheduler.SequentialLR(
                optimizer,
                [
                    optim.lr_scheduler.LinearLR(optimizer, 0.2, total_iters=2),
                    optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
                ],
                [2],
            )
            stream, found = np.random.default_rng(3), {}
            for step in range(5):
                x, target = (rg.tensor(drawn(stream, (6, n)).astype(dtype), device=device) for n in (5, 3))
                loss = nn.MSELoss()(model(x), target)
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                loss.backward()
                norm = optim.clip_grad_norm_(model.parameters(), 0.3, (2.0, 1.0, float("inf"))[step % 3])
                assert norm.device == device
                optim.clip_grad_value_(model.parameters(), 0.1)
                optimizer.step()
                schedule.step()
                found |= {f"step {step}, loss": host(loss), f"step {step}, norm": host(norm)}
                found |= {f"step {step}, {name}": host(p) for name, p in model.named_parameters()}
            return {**found, "rates": np.array([group["lr"] for group in optimizer.param_groups])}

        assert_agree(compute, backend.device.name)

    def test_norms_that_are_not_finite(self, backend):
        p = rg.tensor(np.zeros(2), device=backend.device.name, requires_grad=True)
        p.grad = rg.tensor(np.array([1.0, np.nan]), device=backend.device.name)
        with pytest.raises(rg.NonFiniteError, match="norm is nan"):
            optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
        assert host(p.grad)[0] == 1.0
        assert np.isnan(optim.clip_grad_norm_([p], 1.0).item())
        assert np.isnan(host(p.grad)).all()

    @pytest.mark.parametrize("name", ["sgd, nesterov", "adagrad, all", "rmsprop, all", "adam, all", "adamw"])
    def test_a_state_goes_on_bit_for_bit_also_through_a_file(self, backend, name, tmp_path):
        device = backend.device.name

        def step(optimizer, params, number):
            for p, grad in zip(params, gradients(number), strict=True):
                p.grad = rg.tensor(grad.astype(SINGLE), device=device)
            optimizer.step()

        params = [rg.tensor(v.astype(SINGLE), device=device, requires_grad=True) for v in starts()]
        optimizer = OPTIMIZERS[name](optim, params)
        for number in range(3):
            step(optimizer, params, number)
        save_state(tmp_path / "state", {"optimizer": optimizer.state_dict(), "params": params})
        kept = optimizer.state_dict()
        step(optimizer, params, 3)
        loaded = load_state(tmp_path / "state")
        for state in (loaded["optimizer"], kept):  # from the host, and the copies on the device
            again = [rg.tensor(value, device=device, requires_grad=True) for value in loaded["params"]]
            other = OPTIMIZERS[name](optim, again)
            other.load_state_dict(state)
            step(other, again, 3)
            assert [bits(p) for p in again] == [bits(p) for p in params]


def small_model():
    rg.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)
    )


def samples(count=10):
    stream = np.random.default_rng(8)
    return drawn(stream, (count, 1, 8, 8)), stream.integers(0, 3, count)


class TestModels:
    def test_moving_keeps_the_bits_and_the_objects(self, backend):
        model = small_model()
        before = {name: bits(value) for name, value in model.state_dict().items()}
        parameters, optimizer = list(model.parameters()), optim.Adam(model.parameters())
        model(rg.tensor(samples()[0])).sum().backward()
        kept = [bits(p.grad) for p in parameters]
        before |= {name: bits(value) for name, value in model.named_buffers()}
        model.to(backend.device.name)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        for value in (*model.state_dict().values(), *(p.grad for p in parameters)):
            assert value.device == backend.device.name and type(value.array) is backend.device.array_type
        assert [bits(p.grad) for p in parameters] == kept
        optimizer.step()
        model.to("cpu")
        assert [bits(b) for b in model.buffers()] == [before[name] for name, _ in model.named_buffers()]
        assert all(type(p.array) is np.ndarray and bits(p) != before[n] for n, p in model.named_parameters())

    def test_weights_travel_through_files(self, backend, tmp_path):
        info = ModelInfo("small")
        there, here = small_model().to(backend.device.name), small_model()
        for p in here.parameters():
            p.array += 1
        there(rg.tensor(samples()[0], device=backend.device.name))
        save_weights(tmp_path / "w", there, info)
        load_weights(tmp_path / "w", here)
        assert [bits(v) for v in here.state_dict().values()] == [bits(v) for v in there.state_dict().values()]
        assert {v.device for v in here.state_dict().values()} == {"cpu"}
        for p in here.parameters():
            p.array -= 2
        save_weights(tmp_path / "w", here, info)
        load_weights(tmp_path / "w", there)
        assert [bits(v) for v in here.state_dict().values()] == [bits(v) for v in there.state_dict().values()]
        assert {v.device for v in there.state_dict().values()} == {backend.device.name}

    def test_copies_stand_alone(self, backend):
        model = small_model().to(backend.device.name)
        other, saved = copy.deepcopy(model), copy.deepcopy(model.state_dict())
        before = {name: bits(value) for name, value in saved.items()}
        for p in model.parameters():
            p.array += 1
        for state in (other.state_dict(), saved):
            assert {value.device for value in state.values()} == {backend.device.name}
            assert {name: bits(value) for name, value in state.items()} == before
        model.load_state_dict(saved)
        assert {name: bits(value) for name, value in model.state_dict().items()} == before

    def test_summary(self, backend):
        model = small_model()
        expected = str(model.summary((2, 1, 8, 8)))
        assert str(model.to(backend.device.name).summary((2, 1, 8, 8))) == expected

    def test_hooks_see_arrays_of_the_device(self, backend):
        model, seen = small_model().to(backend.device.name), []
        model[0].register_forward_hook(lambda m, inputs, output: seen.append(output))
        model[3].register_full_backward_hook(lambda m, grad_input, grad_output: seen.extend(grad_input + grad_output))
        model(rg.tensor(samples()[0], device=backend.device.name)).sum().backward()
        assert [t.device for t in seen] == [backend.device.name] * 3


class TestTraining:
    def test_fit_evaluate_and_predict(self, backend):
        def compute(device, dtype):
            model = small_model().to(device, dtype)
            images, labels = samples(10)
            loader = data.DataLoader(
                data.TensorDataset(images.astype(dtype), labels), 4, shuffle=True, seed=1, device=device
            )
            loss = nn.CrossEntropyLoss()
            optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            history = fit(model, loader, loss, optimizer, epochs=2, validation=loader, progress=False)
            checked = evaluate(model, loader, loss)
            scores, truth = predictions_of(model, data.DataLoader(loader.dataset, 4, device=device))
            np.testing.assert_array_equal(truth, labels)
            return {
                "losses": np.array([step.loss for step in history.steps], dtype),
                "validation": np.array([epoch.validation_loss for epoch in history.epochs], dtype),
                "accuracies": np.array([step.accuracy for step in history.steps] + [checked.accuracy]),
                "scores": scores,
            }

        assert_agree(compute, backend.device.name)

    def test_metrics(self, backend):
        stream = np.random.default_rng(0)
        scores, labels = drawn(stream, (20, 4)), stream.integers(0, 4, 20)
        there = [rg.tensor(value, device=backend.device.name) for value in (scores, labels)]
        assert accuracy(*there) == accuracy(scores, labels)
        np.testing.assert_array_equal(confusion_matrix(*there), confusion_matrix(scores, labels))


class TestLoader:
    def test_batches_come_on_the_device(self, backend):
        device, (images, labels) = backend.device.name, samples(5)
        sets = {
            "arrays of the host": data.TensorDataset(images, labels),
            "tensors of the device": data.TensorDataset(*(rg.tensor(v, device=device) for v in (images, labels))),
            "samples": [(image, int(label)) for image, label in zip(images, labels, strict=True)],
            "a part": data.Subset(data.TensorDataset(images, labels), range(5)),
        }
        for name, dataset in sets.items():
            batches = list(data.DataLoader(dataset, 2, shuffle=True, seed=3, device=device))
            expected = list(data.DataLoader(sets["arrays of the host"], 2, shuffle=True, seed=3))
            assert len(batches) == 3
            for batch, wanted in zip(batches, expected, strict=True):
                assert [member.device for member in batch] == [device, device], name
                assert [bits(member) for member in batch] == [bits(member) for member in wanted], name

    def test_structures_and_back_to_the_host(self, backend):
        device = backend.device.name
        dataset = [{"x": rg.tensor(np.full(2, i, SINGLE), device=device), "name": str(i)} for i in range(4)]
        for where in (device, "cpu", None):
            (batch,) = data.DataLoader(dataset, 4, device=where)
            assert batch["x"].device == (where or device) and batch["name"] == ["0", "1", "2", "3"]
            np.testing.assert_array_equal(host(batch["x"])[:, 0], range(4))


class TestRefusals:
    """What does not fit is refused before anything is launched, with the names of both sides or of the layer."""

    def test_a_batch_on_the_host_for_a_model_on_the_device(self, backend):
        device = backend.device
        model = small_model().to(device.name)
        with pytest.raises(DeviceError) as caught:
            model(rg.tensor(samples()[0]))
        assert caught.value.layer == "0"
        assert "'cpu'" in str(caught.value) and str(device) in str(caught.value)
        with pytest.raises(DeviceError, match="'cpu'"):
            nn.CrossEntropyLoss()(model(rg.tensor(samples()[0], device=device.name)), rg.tensor(samples()[1]))

    def test_shapes_and_dtypes(self, backend):
        model = small_model().to(backend.device.name)
        for shape, kind, layer in (((2, 3, 8, 8), ShapeError, "0"), ((2, 1, 12, 8), ShapeError, "5")):
            with pytest.raises(kind) as caught:
                model(rg.tensor(np.zeros(shape, SINGLE), device=backend.device.name))
            assert caught.value.layer == layer
        with pytest.raises(DtypeError) as caught:
            model(rg.tensor(samples()[0].astype(DOUBLE), device=backend.device.name))
        assert caught.value.layer == "0" and "float32" in str(caught.value) and "float64" in str(caught.value)

    @pytest.mark.parametrize("label", [-1, 3, 2**40])
    def test_labels_out_of_range(self, backend, label):
        labels = samples(4)[1]
        labels[2] = label
        logits = rg.tensor(np.zeros((4, 3), SINGLE), device=backend.device.name, requires_grad=True)
        with pytest.raises(IndexRangeError, match=rf"{label}"):
            nn.CrossEntropyLoss()(logits, rg.tensor(labels, device=backend.device.name))
            backend.synchronize()  # the simulated GPU has refused before
        loss = nn.CrossEntropyLoss()(logits, rg.tensor(samples(4)[1], device=backend.device.name))
        assert loss.item() == pytest.approx(np.log(3))  # nothing is left of the fault

    @pytest.mark.parametrize("index", [-7, 6])
    def test_tokens_out_of_range(self, backend, index):
        layer = nn.Embedding(6, 3).to(backend.device.name)
        with pytest.raises(IndexRangeError, match=rf"{index}"):
            layer(rg.tensor(np.array([0, 5, index]), device=backend.device.name))
            backend.synchronize()

    def test_empty_batches(self, backend):
        def compute(device, dtype):
            model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3))
            model.to(device, dtype)
            y = model(rg.tensor(np.zeros((0, 1, 8, 8), dtype), device=device))
            loss = nn.CrossEntropyLoss(reduction="sum")(y, rg.tensor(np.zeros(0, np.int64), device=device))
            loss.backward()
            return {"y": host(y), "loss": host(loss), **{n: host(p.grad) for n, p in model.named_parameters()}}

        assert_agree(compute, backend.device.name)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_carried(self, backend, value):
        def compute(device):
            images, labels = samples(4)
            images[1, 0, 3, 3] = value
            model = small_model().eval().to(device)
            x = rg.tensor(images, device=device, requires_grad=True)
            y = model(x)
            loss = nn.CrossEntropyLoss(reduction="none")(y, rg.tensor(labels, device=device))
            loss.sum().backward()
            return [host(t) for t in (y, loss, x.grad, *(p.grad for p in model.parameters()))]

        for there, here in zip(compute(backend.device.name), compute("cpu"), strict=True):
            np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-6)  # NaN and infinity at the same places
        with pytest.raises(rg.NonFiniteError, match="Conv2d"), rg.autograd.detect_anomaly():
            small_model().to(backend.device.name)(
                rg.tensor(np.full((1, 1, 8, 8), value, SINGLE), device=backend.device.name)
            )

    def test_a_state_of_another_device_fits(self, backend):
        model = small_model().to(backend.device.name)
        model.load_state_dict(small_model().state_dict())
        with pytest.raises(CheckpointError, match="5.bias must"):
            model.load_state_dict({**model.state_dict(), "5.bias": np.zeros(4, SINGLE)})


def test_a_generator_of_ones_own_counts_the_same(backend):
    generators = [Generator(7), Generator(7)]
    for device, generator in zip((backend.device.name, "cpu"), generators, strict=True):
        for _ in range(3):
            rg.functional.dropout(rg.ones(5, device=device), 0.5, generator=generator)
    assert generators[0].get_state() == generators[1].get_state() == (7, 3)
