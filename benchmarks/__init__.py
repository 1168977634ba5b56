"""One command for each figure that the project states: ``python -m benchmarks NAME ...`` (see __main__.py)."""
