"""Loss functions with verified gradients and output curvature. Imports nothing but torch."""
