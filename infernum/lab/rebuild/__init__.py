"""Compiling the `.cu` files of a bundle that a person edited, once they fit the launches in the manifest."""
