"""A hook of mkdocs: the docstrings' cross-references, such as :class:`promise.types.Points`, as code."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?([^<]+)</code>")


def on_page_content(html: str, **_kwargs: Any) -> str:
    """Show a reference by its name; called by mkdocs with each page's HTML."""
    return ROLE.sub(r"<code>\1</code>", html)
