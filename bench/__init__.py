"""Benchmarks: the same work by rawgrad and its peers, side by side in one process.

Read ``harness`` for how a figure comes about, ``shapes`` for what is measured and what it costs in
operations and bytes, ``programs``, ``cases`` and ``rivals`` for the contestants, ``rows`` for the names that
``rawgrad bench`` takes, ``compare`` and ``reports`` for what is made of the results.  ``results/``
holds what was measured, with machine, versions, commit and command.
"""
