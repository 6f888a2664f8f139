"""The listings in Python of the README."""

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def listings() -> dict[str, str]:
    """Those of each section, one after the other, as they build on each other."""
    found: dict[str, str] = {}
    for section in re.split(r"^## ", README.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        listed = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if listed:
            found[title] = "\n\n".join(listed)
    return found
