"""How the site reads docstrings: mkdocstrings calls this (`extensions` in mkdocs.yml).

A docstring here has one `Example:`; griffe knows the plural alone, and would take the singular's code for running text.
"""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Lets `Example:` begin a section of code."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called with each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
