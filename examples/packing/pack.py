"""Circles in the unit square with the largest sum of radii: the file that is edited.

Many packings are improved at once by gradient ascent on the sum of radii minus a penalty for overlaps that grows while the
steps get smaller.  What overlap is left is removed, circles grow where there is room, and the best packing is returned.
"""

from __future__ import annotations

import numpy as np

RESTARTS = 4  # packings that are improved side by side
STEPS = 100  # of gradient ascent
STEP_SIZE = 0.03  # at the beginning, sides of the square
FINAL_STEP = 0.3  # at the end, part of the first
PENALTY = 5.0  # weight of squared overlaps at the beginning
PENALTY_GROWTH = 10.0  # at the end, times the first
MOMENTUM = 0.5
START_RADIUS = 0.05  # of every circle
JITTER = 0.3  # random moves of the centres, part of the step
SWEEPS = 2  # of growing at the end


def pack(count: int, seed: int) -> np.ndarray:
    """`count` circles as rows of x, y, radius: float64 [count, 3], inside the unit square, none over another."""
    random = np.random.default_rng(seed)
    circles = np.empty((RESTARTS, count, 3))
    circles[..., :2] = random.uniform(0.1, 0.9, (RESTARTS, count, 2))
    circles[..., 2] = START_RADIUS
    speed = np.zeros_like(circles)
    for step in range(STEPS):
        done = step / STEPS
        size = STEP_SIZE * (FINAL_STEP + (1 - FINAL_STEP) * (1 - done))
        slope = gradient(circles, PENALTY * PENALTY_GROWTH**done)
        slope /= np.sqrt((slope**2).mean(axis=(1, 2), keepdims=True)) + 1e-12
        speed = MOMENTUM * speed + (1 - MOMENTUM) * slope
        circles += size * speed
        circles[..., :2] += JITTER * size * random.normal(size=circles[..., :2].shape)
        circles[..., :2] = circles[..., :2].clip(0.0, 1.0)
        circles[..., 2] = circles[..., 2].clip(1e-4, 0.5)
    finished = [grow(shrink(one)) for one in circles]
    return max(finished, key=lambda one: float(one[:, 2].sum()))


def gradient(circles: np.ndarray, penalty: float) -> np.ndarray:
    """Of the sum of radii minus `penalty` times all squared overlaps, with respect to x, y and radius."""
    centres, radii = circles[..., :2], circles[..., 2]
    apart = centres[:, :, None] - centres[:, None]
    distance = np.sqrt((apart**2).sum(axis=-1)) + 1e-9
    overlap = (radii[:, :, None] + radii[:, None] - distance).clip(min=0.0)
    overlap[:, np.arange(radii.shape[1]), np.arange(radii.shape[1])] = 0.0
    low = (radii[..., None] - centres).clip(min=0.0)
    high = (radii[..., None] + centres - 1).clip(min=0.0)
    slope = np.empty_like(circles)
    slope[..., :2] = penalty * ((overlap / distance)[..., None] * apart).sum(axis=2) + penalty * (low - high)
    slope[..., 2] = 1 - penalty * (overlap.sum(axis=2) + (low + high).sum(axis=-1))
    return slope


def shrink(circles: np.ndarray) -> np.ndarray:
    """The same centres with radii that do not overlap: of two circles that do, both give way."""
    x, y, radii = circles.T.copy()
    radii = np.minimum.reduce([radii, x, y, 1 - x, 1 - y]).clip(min=0.0)
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    for one, other in zip(*np.triu_indices(len(radii), 1), strict=True):
        over = radii[one] + radii[other] - distance[one, other]
        if over > 0:
            share = min(max(over / 2, over - radii[other]), radii[one])
            radii[one] -= share
            radii[other] -= over - share
    return np.stack([x, y, radii], axis=1)


def grow(circles: np.ndarray) -> np.ndarray:
    """Each circle in turn as large as its neighbours and the sides allow."""
    x, y, radii = circles.T.copy()
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(distance, np.inf)
    for _ in range(SWEEPS):
        for one in range(len(radii)):
            room = min((distance[one] - radii).min(), x[one], y[one], 1 - x[one], 1 - y[one])
            radii[one] = max(radii[one], room - 1e-12)
    return np.stack([x, y, radii], axis=1)
