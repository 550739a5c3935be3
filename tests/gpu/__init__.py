"""Tests that need an NVIDIA GPU, and the harness they share, which is tested without one."""
