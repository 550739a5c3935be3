"""Weights: which buffers a bundle needs, and their values, for the GPU and for NumPy."""
