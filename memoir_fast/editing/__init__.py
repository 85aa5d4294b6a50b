"""How an edit is learned."""

from memoir_fast.editing.recipe import RECIPES, Recipe
from memoir_fast.editing.request import Edit

__all__ = ["RECIPES", "Edit", "Recipe"]
