"""One order of the samples, split over the ranks of a distributed run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...kernels._errors import ArgumentError
from .dataset import check_whole, random_order


class DistributedSampler:
    """The part of one global order that belongs to this rank: every ``num_replicas``-th sample.

    The global order depends on (seed, epoch) alone, so with batches of b samples on each of r ranks the
    k-th batches of all ranks together are the samples k·b·r to (k+1)·b·r of that order, and another
    number of ranks with the same b·r sees the same.

    Args:
        dataset: has a length.
        num_replicas: the number of ranks.
        rank: this one, from 0.
        shuffle: a new random order each epoch (:meth:`set_epoch`, which the loader calls).
        seed: of the order; the same on all ranks.
        drop_last: leave out what does not divide evenly; else the first samples of the order are taken
            twice, as in torch.
        uneven: do neither: the first ranks have one sample more.

    Raises:
        ArgumentError: a rank that is none of the ranks, or two ways at once to deal with the rest.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int,
        rank: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        uneven: bool = False,
    ) -> None:
        check_whole("DistributedSampler", "num_replicas", num_replicas, 1)
        check_whole("DistributedSampler", "rank", rank, 0, num_replicas - 1)
        check_whole("DistributedSampler", "seed", seed)
        if drop_last and uneven:
            raise ArgumentError("DistributedSampler: drop_last and uneven must not both be True")
        self.dataset, self.num_replicas, self.rank = dataset, num_replicas, rank
        self.shuffle, self.seed, self.drop_last, self.uneven = shuffle, seed, drop_last, uneven
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next order that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        samples, ranks = len(self.dataset), self.num_replicas
        if self.uneven:
            return len(range(self.rank, samples, ranks))
        return samples // ranks if self.drop_last else -(-samples // ranks)

    def __iter__(self) -> Iterator[int]:
        samples = len(self.dataset)
        order = random_order(self.seed, self.epoch, samples) if self.shuffle else np.arange(samples)
        if not self.uneven and samples:
            order = np.resize(order, len(self) * self.num_replicas)  # cuts, or begins again
        return iter(order[self.rank :: self.num_replicas].tolist())
