"""Records to figures, tables and pages. Needs no model."""

from theodolite.reports import figures
from theodolite.reports.files import save_figures
from theodolite.reports.films import save_film
from theodolite.reports.page import report
from theodolite.reports.tables import terminal

__all__ = ["figures", "report", "save_figures", "save_film", "terminal"]
