"""The ops of the engine, each a public function over a registered torch op. They know no model."""

from memoir_fast.ops.code_route import code_route
from memoir_fast.ops.mask_columns import mask_columns
from memoir_fast.ops.mask_match import mask_match
from memoir_fast.ops.mask_overlap import mask_overlap
from memoir_fast.ops.masked_linear import masked_linear, masked_linear_add_
from memoir_fast.ops.memory_update import memory_update
from memoir_fast.ops.prompt_feature import prompt_feature
from memoir_fast.ops.route_rows import route_rows
from memoir_fast.ops.tophash import tophash

__all__ = [
    "code_route",
    "mask_columns",
    "mask_match",
    "mask_overlap",
    "masked_linear",
    "masked_linear_add_",
    "memory_update",
    "prompt_feature",
    "route_rows",
    "tophash",
]
