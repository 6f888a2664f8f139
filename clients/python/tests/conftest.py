"""Makes the tools and the example importable for their tests."""

import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent

for directory in ("tools", "examples", "examples/search_index"):
    sys.path.insert(0, str(CLIENT / directory))
