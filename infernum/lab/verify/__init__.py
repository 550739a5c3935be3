"""Checks of a bundle: every kernel against its NumPy meaning, every rule in its graphs and in random graphs."""
