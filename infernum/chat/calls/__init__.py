"""The calls of functions in what a model writes: a scanner for each family of models, and the choice among them."""
