"""Pictures of what the compiler did: one HTML file about a whole bundle, and drawings of single graphs."""
