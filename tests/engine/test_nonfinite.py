"""NaN and infinity, planted in each place from which they come: the training ends, says where, and can be replayed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from _runs import BATCH, Pictures, bits, network, run

import rawgrad as rg
from rawgrad import data, nn, optim
from rawgrad import functional as F
from rawgrad.engine.train import loop
from rawgrad.kernels._errors import ArgumentError, CheckpointError, NonFiniteError
from rawgrad.train import Checkpoints, NonFiniteGuard, Replay, fit, replay

pytestmark = pytest.mark.backends("numba", "emulated", "cuda")


class Root(nn.Module):
    """Adds the square root of a feature, whose gradient at 0 is infinite; negative ones have none."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(64, 6), nn.Linear(6, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.above(self.below(x)) + x[:, :1].sqrt()


class Squashed(nn.Module):
    """Divides by what its inputs add up to."""

    def forward(self, x):
        return x / x.sum(1, keepdim=True)


def pictures(change=None, samples=24):
    images, labels = Pictures(samples).images.copy(), Pictures(samples).labels
    if change is not None:
        change(images)
    return data.TensorDataset(images, labels)


def trained(model, dataset, folder=None, device="cpu", epochs=2, loss=F.cross_entropy, **options):
    loader = data.DataLoader(dataset, BATCH, shuffle=True, seed=5, device=device)
    optimizer = optim.SGD(model.parameters(), 0.1)
    guard = NonFiniteGuard(folder, {"what": "a test"})
    fit(model, loader, loss, optimizer, epochs=epochs, progress=False, callbacks=[guard], **options)


def test_an_operation_is_named_with_its_layer_line_and_samples(backend, tmp_path):
    def negative(images):
        images[:, 0, 0, 0] = 1.0
        images[17, 0, 0, 0] = -1.0

    dataset, device = pictures(negative), backend.device.name
    rg.manual_seed(0)
    model = Root().to(device)
    with pytest.raises(NonFiniteError) as caught:
        trained(model, dataset, tmp_path, device, capture=False)
    said = str(caught.value)
    order = data.DataLoader(dataset, BATCH, shuffle=True, seed=5)
    (batch,) = (number for number in range(len(order)) if 17 in order.indices(number))
    samples = ", ".join(map(str, order.indices(batch)))
    assert said.startswith(f"step {batch}, batch {batch} of epoch 0 (samples {samples}): the loss is nan. ")
    assert re.search(
        r"Sqrt.*: output 0 of shape \(6, 1\) has 1 of 6 values that are NaN or infinite; called from ", said
    )
    assert f"{__file__}:" in said and "return self.above(self.below(x)) + x[:, :1].sqrt()" in said
    (file,) = tmp_path.iterdir()
    assert said.endswith(f"saved in {file}.")
    for name, value in model.state_dict().items():
        assert np.isfinite(rg.tensor(value).to("cpu").numpy()).all(), name

    saved = Replay(file)
    assert saved.samples == order.indices(batch).tolist() and saved.settings == {"what": "a test"}
    inputs, _ = saved.batches[0]
    np.testing.assert_array_equal(inputs, dataset.batch(order.indices(batch))[0])
    assert saved.message in said
    other, seen = Root().to(device), []
    assert saved(other, F.cross_entropy, before=lambda x: seen.append(x.shape)).startswith("Sqrt")
    assert seen == [(6, 1, 8, 8)]


def test_a_gradient_before_it_reaches_the_weights(backend, tmp_path):
    """The root of 0 is finite, its gradient is not; a layer below must have it for the last gradient to show it."""

    class Below(Root):
        def forward(self, x):
            hidden = self.below(x.flatten(1))
            return self.above(hidden + (hidden * 0.0).sqrt())

    rg.manual_seed(0)
    model = Below().to(backend.device.name)
    before = {n: rg.tensor(v).to("cpu").numpy().copy() for n, v in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"a gradient is NaN or infinite\. backward of Sqrt") as caught:
        trained(model, pictures(), tmp_path, backend.device.name, capture=False)
    assert "gradient 0 of shape (6, 6)" in str(caught.value)
    after = {n: rg.tensor(v).to("cpu").numpy() for n, v in model.state_dict().items()}
    assert all((before[n] == after[n]).all() for n in before)
    assert replay(next(tmp_path.iterdir()), Below().to(backend.device.name), F.cross_entropy).startswith(
        "backward of Sqrt"
    )


def test_inputs_that_have_it_are_named(tmp_path):
    def broken(images):
        images[3, 0, 2, 2] = np.inf
        images[20, 0, 1, 1] = np.nan

    with pytest.raises(NonFiniteError, match=r"The inputs have NaN or infinity, in the rows \d"):
        trained(network(), pictures(broken), tmp_path)


def test_weights_that_have_it_already(tmp_path):
    model = network()
    model[5].weight.array[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"The weights have NaN or infinity since an earlier step: 5\.weight\."):
        trained(model, pictures(), tmp_path)


def test_dropout_is_drawn_as_in_the_step(tmp_path):
    """Division by what dropout left: only the very same mask leaves nothing."""
    rg.manual_seed(11)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), nn.Dropout(0.6), Squashed(), nn.Linear(2, 10))
    with pytest.raises(NonFiniteError) as caught:
        trained(model, pictures(), tmp_path, epochs=9)
    assert "Div" in str(caught.value) and "in layer 3" in str(caught.value)
    drawn = rg.manual_seed(11).state_dict()
    for _ in range(3):
        assert replay(next(tmp_path.iterdir()), model, F.cross_entropy) in str(caught.value)
    assert rg.manual_seed(11).state_dict() == drawn


def test_a_captured_step_is_judged_after_it(backend, tmp_path, monkeypatch):
    """Its weights are spoilt; but no checkpoint has them, and from the last one the place is found."""
    monkeypatch.setattr(loop, "graphed", lambda step, make=loop.graphed: make(step, warmup=1))
    if backend.device.name == "cpu":
        pytest.skip("nothing is captured on the CPU")

    def overflowing(predictions, targets):
        return F.cross_entropy(predictions * (predictions.detach() * 0 + factor), targets)

    factor = rg.ones(1, device="cuda")

    def spoil(step):
        if step.step == 2:
            factor.copy_(rg.full((1,), np.inf))

    rg.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to("cuda")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NonFiniteError, match=r"step 3: .*replayed as a whole \(captured\)"):
            trained(
                model, pictures(), tmp_path, "cuda", loss=overflowing, on_step=spoil, checkpoints=checkpoints,
                save_every=1, capture=True,
            )  # fmt: skip
        checkpoints.wait()
        weights = checkpoints.load().state["model"]
    assert all(np.isfinite(array).all() for array in weights.values())


def test_healthy_runs_are_not_changed(tmp_path):
    run(tmp_path / "with", callbacks=[NonFiniteGuard(tmp_path)])
    run(tmp_path / "without")
    assert bits(tmp_path / "with") == bits(tmp_path / "without")
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_a_scale_overflows_is_left_to_it(tmp_path):
    """The loss is finite, the scaled one is not: those steps are left out, and the weights stay."""
    model = network()
    before = model[1].weight.detach().numpy().copy()
    trained(model, pictures(), tmp_path, loss=lambda p, t: F.cross_entropy(p, t) * 1e36, epochs=1, precision="fp16")
    assert (model[1].weight.detach().numpy() == before).all() and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    model = network()
    model[5].weight.array[0, 0] = np.nan
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NonFiniteError, match="could not be saved"):
        trained(model, pictures(), tmp_path / "file")
    with pytest.raises(NonFiniteError, match="is saved in"):  # one that there is not is made
        trained(model, pictures(), tmp_path / "new" / "folder")


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path):
        model = network()
        model[5].weight.array[0, 0] = np.nan
        with pytest.raises(NonFiniteError):
            trained(model, pictures(), tmp_path)
        return next(tmp_path.iterdir())

    def test_damage_is_noticed(self, file):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            Replay(file)

    def test_of_something_else(self, file, tmp_path):
        with Checkpoints(tmp_path / "c") as checkpoints:
            checkpoints.save({"model": {}}, step=1, wait=True)
        with pytest.raises(CheckpointError, match="is not a step that met NaN or infinity"):
            Replay(next((tmp_path / "c").glob("*.safetensors")))

    def test_of_another_model(self, file):
        with pytest.raises(CheckpointError):
            replay(file, Root(), F.cross_entropy)


class TestIndices:
    def test_they_are_those_of_the_batches(self):
        loader = data.DataLoader(pictures(), BATCH, shuffle=True, seed=2)
        for epoch in range(2):
            for number, (images, _) in enumerate(loader):
                expected = loader.dataset.batch(loader.indices(number))[0]
                np.testing.assert_array_equal(images.numpy(), expected)
            assert (loader.indices(0, epoch) != loader.indices(0, epoch + 1)).any()

    @pytest.mark.parametrize("batch", [-1, 4])
    def test_a_batch_that_there_is_not(self, batch):
        with pytest.raises(ArgumentError, match="batch must be from 0 to 3"):
            data.DataLoader(pictures(), BATCH).indices(batch)
