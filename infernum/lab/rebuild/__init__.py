"""Compiling what a person edited in a bundle: whether it still fits its launches, and the bundle brought up to date."""
