"""Runs bundles without a GPU: their graphs, interpreted in NumPy."""
