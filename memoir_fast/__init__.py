"""memoir_fast: thousands of corrections to a language model, one after another, without retraining it."""

from memoir_fast import _source_tree  # noqa: F401  (first: it makes memoir_fast.kernels importable)

__version__ = "0.1.0"
