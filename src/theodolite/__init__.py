"""Survey the geometry of training in PyTorch: loss, curvature, landscape, gradients."""
