"""A program as somebody would write it: imports, P5's network, one training step.  For rawgrad and for PyTorch.

``first_step`` runs it as a script in processes of its own.  It imports nothing of the bench, whose imports would count.
It says a line when the library is imported, and one with the loss after the step.
"""

import importlib
import sys

import numpy as np


def main(name: str, threads: int) -> None:
    """Import the library and take the step."""
    lib, nn, optim = (importlib.import_module(name + part) for part in ("", ".nn", ".optim"))
    functional = importlib.import_module("torch.nn.functional" if name == "torch" else f"{name}.functional")
    print("imported", flush=True)

    lib.set_num_threads(threads)
    network = nn.Sequential(
        *(nn.Conv2d(1, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(980, 10)),
    )
    draw = np.random.default_rng(0)
    for parameter in network.parameters():
        size = tuple(parameter.shape)
        values = draw.normal(0, np.sqrt(2 / np.prod(size[1:])), size) if len(size) > 1 else np.zeros(size)
        parameter.data = lib.tensor(values.astype(np.float32))
    optimizer = optim.SGD(network.parameters(), lr=0.01)
    images = lib.tensor(draw.random((100, 1, 28, 28), dtype=np.float32))
    labels = lib.tensor(draw.integers(0, 10, 100))

    loss = functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
