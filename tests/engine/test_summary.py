"""summary: what runs, what shape comes out, how many parameters."""

from __future__ import annotations

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import nn


def test_a_small_cnn_line_by_line():
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5, padding=2), nn.BatchNorm2d(20), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten(),
        nn.Linear(20 * 14 * 14, 10),
    )  # fmt: skip
    model[0].requires_grad_(False)
    model[2].eval()
    table = model.summary((3, 1, 28, 28))
    assert [(row.path, row.depth, row.output_shape, row.parameters) for row in table.rows] == [
        ("", 0, (3, 10), 0),
        ("0", 1, (3, 20, 28, 28), 20 * 25 + 20),
        ("1", 1, (3, 20, 28, 28), 40),
        ("2", 1, (3, 20, 14, 14), 0),
        ("2.0", 2, (3, 20, 28, 28), 0),
        ("2.1", 2, (3, 20, 14, 14), 0),
        ("3", 1, (3, 3920), 0),
        ("4", 1, (3, 10), 39210),
    ]
    assert (table.total, table.trainable) == (520 + 40 + 39210, 40 + 39210)
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    assert lines[3].split() == ["0:", "Conv2d", "(3,", "20,", "28,", "28)", "520"]
    assert lines[-1] == "39,770 parameters, 39,250 trainable"
    assert len({len(line) for line in lines[:-1]}) == 1
    # Looking changes nothing: modes, hooks and running statistics are as before.
    assert model.training and not model[2].training and model[1].training
    assert not any(m._hooks or m._pre_hooks for m in model.modules())
    assert model[1].num_batches_tracked.item() == 0


def test_shared_and_unused_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(2, 2)
            self.unused = nn.Linear(2, 3)

        def forward(self, a, b):
            return self.used(self.used(a)) + b

    table = nn.summary(Odd(), [(4, 2), rg.tensor(np.zeros((4, 2), np.float32))])
    assert [(row.path, row.parameters) for row in table.rows] == [("", 0), ("used", 6), ("used", 0)]
    assert table.total == 15
    assert str(table).splitlines()[-1] == "of these in layers that did not run: 9"


def test_integers_for_an_embedding_and_bad_input():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    assert model.summary((2, 7), np.int64).rows[0].output_shape == (2, 7, 2)
    with pytest.raises(rg.ShapeError) as caught:
        nn.Sequential(nn.Sequential(nn.Linear(3, 2))).summary([4, 5])
    assert caught.value.layer == "0.0"
    with pytest.raises(rg.ArgumentError, match="summary: input_size must be a shape or a tensor; got 'x'"):
        model.summary("x")
