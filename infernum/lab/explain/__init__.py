"""Explanations of a bundle: what its kernels cost, which rules made them, how it differs from another bundle."""
