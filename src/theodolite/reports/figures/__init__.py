"""Figures as descriptions: a record in, a backend-neutral description out."""
