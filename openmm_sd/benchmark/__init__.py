"""How fast everything is on this machine, side by side in one run; see docs/benchmark.md."""

from .published import PublishedNetwork
from .stage import BenchmarkSettings, as_text, run_benchmark

__all__ = ["BenchmarkSettings", "PublishedNetwork", "as_text", "run_benchmark"]
