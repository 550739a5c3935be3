"""Tools for whoever looks into the compiler: what it did and why, whether that is right, and what it costs."""
