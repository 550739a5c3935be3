"""Measurements on a GPU: latency, single kernels, traces, and the bounds that they are compared with."""
