"""A photo application with two paths: RabbitMQ for what must not be lost, Hail
Mary for what may. `python -m photo_app` runs all of it; see the README.
"""

import sys
from pathlib import Path

# What starts programs and reads a bus's metrics is the other example's.
sys.path.append(str(Path(__file__).resolve().parent.parent / "search_index"))
