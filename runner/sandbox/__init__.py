"""One container per call: created, watched on the host's monotonic clock, read back, removed.

What it gives: no network, no host path, a read-only root, no capabilities, a non-root user, no way to gain
privileges, hard limits on memory, processes, CPU, log and everything that can be written, and a deadline
that the host enforces.  What it does not give: protection from defects of the kernel or of a GPU driver,
which all containers of a machine share.

This package is the only place that talks to the container engine.
"""
