"""How fast everything is on this machine, side by side in one run; see docs/benchmark.md."""

from .driver import BenchmarkSettings, as_text, run_benchmark
from .published import PublishedNetwork

__all__ = ["BenchmarkSettings", "PublishedNetwork", "as_text", "run_benchmark"]
