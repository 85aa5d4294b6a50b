"""Every benchmark, in the orders in which runs take them. A new one is entered here and nowhere else."""

import bench_backward
import bench_code_route
import bench_edit
import bench_edit_phases
import bench_generate
import bench_host
import bench_layer
import bench_mask_columns
import bench_mask_match
import bench_mask_overlap
import bench_masked_linear
import bench_memory_update
import bench_pages
import bench_prompt_feature
import bench_route_rows
import bench_scaling
import bench_sketch
import bench_tophash
import torch
from benchmark import Benchmark, Call
from shapes import Layer

# What a run that is cut off must have comes first.
ON_CPU: tuple[Benchmark, ...] = (
    bench_mask_match.BENCHMARK,
    bench_tophash.BENCHMARK,
    bench_masked_linear.BENCHMARK,
    bench_layer.BENCHMARK,
    bench_generate.BENCHMARK,
    bench_edit.BENCHMARK,
    bench_prompt_feature.BENCHMARK,
    bench_mask_overlap.BENCHMARK,
    bench_mask_columns.BENCHMARK,
    bench_route_rows.BENCHMARK,
    bench_code_route.BENCHMARK,
    bench_memory_update.BENCHMARK,
    bench_sketch.BENCHMARK,
    bench_scaling.BENCHMARK,
    bench_edit_phases.BENCHMARK,
    bench_backward.BENCHMARK,
    bench_host.BENCHMARK,
    bench_pages.BENCHMARK,
)

# Whole models and learning come first: the ops' rows are short, and what a cut-off loses are the longest ones.
ON_GPU: tuple[Benchmark, ...] = (
    bench_generate.BENCHMARK,
    bench_edit_phases.BENCHMARK,
    bench_prompt_feature.BENCHMARK,
    bench_memory_update.BENCHMARK,
    bench_backward.BENCHMARK,
    bench_host.BENCHMARK,
    bench_tophash.BENCHMARK,
    bench_masked_linear.BENCHMARK,
    bench_layer.BENCHMARK,
    bench_mask_match.BENCHMARK,
    bench_mask_columns.BENCHMARK,
    bench_route_rows.BENCHMARK,
    bench_code_route.BENCHMARK,
    bench_mask_overlap.BENCHMARK,
    bench_scaling.BENCHMARK,
    bench_sketch.BENCHMARK,
)

NAMED = {benchmark.name: benchmark for benchmark in ON_CPU}


def calls(layer: Layer, dtype: torch.dtype = torch.bfloat16) -> list[Call]:
    """What the kernels are compiled, counted and predicted for: every op at a layer's sizes.

    Floors count each input that is needed once and each output once.
    """
    return [call for benchmark in ON_CPU for call in benchmark.calls(layer, dtype)]
