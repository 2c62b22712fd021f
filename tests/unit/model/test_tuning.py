"""Tuning: operations counted as torch counts them, the speed of a small encoder, the best setting."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kiln.model import clay, tuning, weights
from kiln.model.identity import PRECISIONS
from kiln.model.tuning import Speed

SMALL = clay.Geometry(dim=64, depth=6, heads=2, dim_head=32, mlp=128)
SPEEDS = [
    Speed("float32", 1, 0.50, 360.0, 400.0),
    Speed("float32", 8, 0.60, 430.0, 500.0),
    Speed("float32", 16, 0.605, 433.0, 500.0),
    Speed("bfloat16", 8, 0.20, 140.0, 150.0),
]


def test_operations_are_those_that_torch_counts() -> None:
    encoder = weights.untrained_encoder(replace(SMALL, depth=3), 0)
    x = torch.randn(2, 17, 64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # whose products are counted
        encoder.transformer(x)
    assert 2 * 3 * tuning.block_flops(SMALL, 17) == counter.get_total_flops()


def test_the_best_is_the_fastest_and_of_equals_the_smallest_batch() -> None:
    assert tuning.best(SPEEDS) == SPEEDS[1], "1% more is not worth twice the memory"
    assert tuning.best(SPEEDS, slack=0) == SPEEDS[2]
    assert tuning.best(SPEEDS[3:]) == SPEEDS[3]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_time_of_all_blocks_is_extrapolated(precision: str) -> None:
    speed = tuning.measure(SMALL, 2, precision, "cpu", chip_px=64)
    assert (speed.precision, speed.batch) == (precision, 2)
    assert speed.chips_per_second > 0
    flops = tuning.block_flops(SMALL, 65) * 6
    assert speed.gflops == pytest.approx(speed.chips_per_second * flops / 1e9)
    assert speed.matrix_fraction == speed.gflops / speed.matrix_gflops
