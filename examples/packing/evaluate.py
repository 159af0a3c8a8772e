"""Measures pack.py; fixed.  Prints one line for each metric, which is all that the runner reads.

It runs in the same process as pack.py and cannot keep that from lying: a reported score is only as good as the file that
earns it.  Look at what is kept.
"""

from __future__ import annotations

import os
import time

import numpy as np
from pack import pack

COUNT = 26
"""Circles in a square; the best packing known has a sum of radii of about 2.636."""
PACKINGS = 8
"""Their mean is the score: one packing alone depends too much on luck."""


def overlap(circles: np.ndarray) -> float:
    """How far two circles overlap, or one leaves the square, at worst; sides of the square."""
    x, y, radii = circles.T
    apart = np.hypot(x[:, None] - x, y[:, None] - y) - radii[:, None] - radii
    np.fill_diagonal(apart, np.inf)
    sides = np.minimum.reduce([x - radii, y - radii, 1 - x - radii, 1 - y - radii])
    return max(0.0, -float(apart.min()), -float(sides.min()), -float(radii.min()))


def main() -> None:
    """Pack, check, print."""
    seed = int(os.environ.get("AUTORESEARCH_SEED", "0"))
    sums, overlaps, used = [], [], 0.0
    for number in range(PACKINGS):
        began = time.process_time()
        circles = np.asarray(pack(COUNT, seed * PACKINGS + number), dtype=np.float64)
        used += time.process_time() - began
        if circles.shape != (COUNT, 3) or not np.isfinite(circles).all():
            raise SystemExit(f"pack() must give {COUNT} rows of x, y, radius, all finite; it gave {circles.shape}")
        sums.append(circles[:, 2].sum())
        overlaps.append(overlap(circles))
    print(f"sum_of_radii: {np.mean(sums):.6f}")
    print(f"overlap: {max(overlaps):.3e}")
    print(f"cpu_seconds: {used:.3f}")


if __name__ == "__main__":
    main()
