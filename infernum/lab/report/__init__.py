"""Pictures of a bundle: one HTML file about all of it, and drawings of single graphs."""
