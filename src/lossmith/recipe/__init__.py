"""The recipe of a good loss as a tool: what a loss does with the error, with sure right answers, and with sure wrong ones."""

from lossmith.recipe.check import check_recipe, table
from lossmith.recipe.report import RecipeReport

__all__ = ["RecipeReport", "check_recipe", "table"]
