"""From a problem at one point to a record: curvature, gradients, stability."""
