"""Records to figures, tables and pages. Needs no model."""
