"""The differentiable operations, one file per kernel operation and one per family of small ones.

A Function knows no backend: it calls ``rawgrad.kernels`` (or the tensors' own array module for
plain elementwise arithmetic, reductions and indexing), keeps what its gradient needs, and writes
that gradient in terms of other Functions, so that it can be differentiated again.
"""
