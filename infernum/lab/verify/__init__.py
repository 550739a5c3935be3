"""Doubts what a compiler did: every kernel against its NumPy meaning, every rule on random graphs."""
