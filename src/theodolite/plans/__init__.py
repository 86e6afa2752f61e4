"""Several measures of a problem at one point: by plan, by name or by function, priced before they run."""

from theodolite.plans.menu import MEASURES, PLANS, chosen
from theodolite.plans.price import Quote, quote
from theodolite.plans.survey import FAILED, survey

__all__ = ["FAILED", "MEASURES", "PLANS", "Quote", "chosen", "quote", "survey"]
