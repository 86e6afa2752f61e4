"""Curves between checkpoints: straight, bent by training, or straight after the units are matched."""

from theodolite.landscapes.paths.path import path

__all__ = ["path"]
