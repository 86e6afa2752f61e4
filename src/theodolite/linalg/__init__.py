"""Matrix-free linear algebra: knows matvecs, never models."""
