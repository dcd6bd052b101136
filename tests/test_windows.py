from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from frcrn_accel import Windowing

RATE, HOP = 16_000, 320
SMALL = Windowing(window_s=1.0, past_s=0.1, future_s=0.04, fade_s=0.1)


@pytest.mark.parametrize("windowing", [SMALL, Windowing(), Windowing(3.0, 0.96, 0.04, 0.0)])
@pytest.mark.parametrize("frames", [1, 2, 49, 50, 51, 75, 99, 100, 101, 149, 151, 1_499, 1_500, 1_501, 10_007])
def test_every_length_is_covered_once(windowing, frames):
    samples = frames * HOP
    plan = windowing.plan(samples, RATE, HOP)
    total = np.zeros(samples)
    for window in plan:
        total[window.start : window.stop] += window.weights()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert len({window.samples for window in plan}) == 1
    assert plan[0].start == 0
    assert plan[-1].stop == samples
    assert all(window.start % HOP == 0 for window in plan)
    assert plan[0].samples <= round(windowing.window_s * RATE)


@pytest.mark.parametrize("frames", [51, 76, 120, 700])
def test_neighbours_have_the_requested_context(frames):
    plan = SMALL.plan(frames * HOP, RATE, HOP)
    assert len(plan) > 1
    for earlier, later in pairwise(plan):
        assert earlier.fade_out == later.fade_in
        assert later.fade_in[0] - later.start >= 0.1 * RATE
        assert earlier.stop - earlier.fade_out[1] == 0.04 * RATE
        assert later.fade_in[1] - later.fade_in[0] == 0.1 * RATE


def test_work_grows_without_steps():
    # One frame more than one window costs about one overlap more, not a whole second window.
    whole, cut = (SMALL.plan(frames * HOP, RATE, HOP) for frames in (50, 51))
    assert len(whole) == 1
    assert len(cut) == 2
    assert sum(window.samples for window in cut) <= (51 + 12 + 2) * HOP


@pytest.mark.parametrize(
    "arguments",
    [
        {"past_s": 0.01},
        {"future_s": 0.0},
        {"fade_s": -0.1},
        {"window_s": 5.0},
        {"window_s": float("nan")},
        {"window_s": float("inf")},
        {"past_s": float("nan")},
    ],
)
def test_impossible_lengths_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        Windowing(**arguments)


@pytest.mark.parametrize("samples", [0, -320, 321])
def test_plan_requires_whole_hops(samples):
    with pytest.raises(ValueError, match="positive multiple of 320"):
        SMALL.plan(samples, RATE, HOP)
