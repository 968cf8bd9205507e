"""How fast everything is on this machine, side by side in one run; see docs/benchmark.md."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .driver import as_text as as_text, run_benchmark as run_benchmark
    from .published import PublishedNetwork as PublishedNetwork
    from .settings import BenchmarkSettings as BenchmarkSettings
else:
    __getattr__, __dir__, __all__ = lazy(
        __name__,
        {
            ".driver": "as_text run_benchmark",
            ".published": "PublishedNetwork",
            ".settings": "BenchmarkSettings",
        },
    )
