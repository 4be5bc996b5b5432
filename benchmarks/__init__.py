"""What the figures of the README and the docs were measured with. `python -m benchmarks.bench --help`."""
