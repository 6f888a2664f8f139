"""The wire contract, generated. `tools/generate_stubs.py` makes it anew."""
