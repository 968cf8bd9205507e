"""Work shared out among the workers of a Dask cluster.

A `Pool` hands pieces of a `Job` to workers and streams back what they have made. The owner of the
pool writes it: workers need no file system in common with it. The piece of a worker that dies is
made again by another one (Dask sees to that); what was handed in stays.

Nothing is sent with a piece but its order. What all pieces need goes to each worker once, with a
plugin, also to workers that come later or come back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ..version import __version__
from .shares import shares

try:
    import distributed
    from distributed.diagnostics.plugin import WorkerPlugin
except ImportError as error:
    raise ImportError(
        "work on a cluster needs Dask, which is not installed: pip install 'openmm-sd[cluster]'"
    ) from error

#: What a cluster can be named by: ``local``, a number of local workers, the address of a scheduler
#: or its file; or an object of Dask: a Client or a cluster.
Where = Any

LOCAL: Final = "local"
# How long a scheduler may take to answer, s.
_ANSWER_SECONDS: Final = 20.0
# How often it is looked which workers there are, s.
_LOOK_SECONDS: Final = 0.5
# How long workers may take to hand in what they are at when they are told to stop, s.
_STOP_SECONDS: Final = 60.0

# On a worker: jobs by name, and the names of those that are to stop.
_jobs: dict[str, Job] = {}
_stopped: set[str] = set()


class Job(Protocol):
    """What the pieces of some work have in common. It must be possible to pickle it."""

    def work(self, order: Any, stopped: Callable[[], bool]) -> Any:
        """Make the piece that is ordered, or hand in what there is once `stopped` says so.

        The same order may come again, on this worker or another one.
        """


@dataclass(frozen=True)
class Made:
    """What a job returned for the piece that was submitted with a tag, and the worker's address."""

    tag: Any
    result: Any
    worker: str


class Pool:
    """The workers of a cluster, ready for a job.

    `workers` is how many a cluster that is started here gets: by default one a GPU, else one a
    core. ValueError if `where` is no cluster, or no scheduler answers.
    """

    def __init__(self, where: Where, job: Job, workers: int | None = None) -> None:
        self._opened = contextlib.ExitStack()
        self._name = f"openmm-sd-{uuid.uuid4().hex}"
        self._ready: queue.Queue[distributed.Future] = queue.Queue()
        self._tags: dict[str, tuple[Any, distributed.Future]] = {}
        self._aims: dict[str, str | None] = {}
        self._told: float | None = None
        self._patience = _ANSWER_SECONDS
        self._here: list[str] = []
        self._looked = -math.inf
        with contextlib.ExitStack() as opened:
            self._client = _client(where, workers, opened)
            plugin = _Preparation(job, self._name, own=is_local(where))
            self._client.register_plugin(plugin, name=self._name)
            self._opened = opened.pop_all()

    @property
    def slots(self) -> int:
        """Number of workers at the moment."""
        return len(self._workers())

    def _workers(self) -> list[str]:
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._here, self._looked = list(self._client.nthreads()), now
        return self._here

    @property
    def busy(self) -> int:
        """Number of pieces that are not handed in."""
        return len(self._tags)

    def submit(self, order: Any, tag: Any, worker: str | None = None) -> None:
        """Have a piece made and remember its tag; by the `worker` of that address if it is free."""
        # Dask likes to give a worker a second piece before the others have come up.
        aimed = Counter(self._aims.values())
        here = sorted(self._workers(), key=lambda one: (aimed[one], one != worker))
        chosen = {"workers": here[:1], "allow_other_workers": True} if here else {}
        future = self._client.submit(_work, self._name, order, pure=False, **chosen)
        self._tags[future.key] = (tag, future)
        self._aims[future.key] = here[0] if here else None
        future.add_done_callback(self._ready.put)

    def made(self, seconds: float) -> list[Made]:
        """Return the pieces that are there, after waiting at most so long for the first.

        What the job raised on a worker is raised here; RuntimeError if a piece has cost several
        workers their lives, or the scheduler is lost.
        """
        if self._told is not None and (not self.slots or time.monotonic() > self._told):
            self._drop()  # nobody is there to hand it in
        found: list[Made] = []
        with contextlib.suppress(queue.Empty):
            found += self._take(self._ready.get(timeout=seconds))
            while True:
                found += self._take(self._ready.get_nowait())
        return found

    def _take(self, future: distributed.Future) -> list[Made]:
        if future.key not in self._tags:
            return []
        tag, _ = self._tags[future.key]
        if future.status in ("cancelled", "lost"):
            raise RuntimeError(
                "the connection to the Dask scheduler was lost; what was handed in is kept, the "
                "same command goes on with it"
            )
        try:
            worker, result = future.result(timeout=self._patience)
        except TimeoutError:
            if future.status == "error":
                raise  # the job's own
            if future.status == "finished":
                self._patience *= 2.0  # it is large, or the way is long
            # Else the worker died with the piece in its hands: it is being made again.
            future.add_done_callback(self._ready.put)
            return []
        except distributed.KilledWorker as error:
            raise RuntimeError(
                f"several workers died one after the other while they made the same piece ({tag}); "
                "their logs say why (no memory, no GPU?)"
            ) from error
        del self._tags[future.key], self._aims[future.key]
        return [Made(tag, result, worker)]

    def stop(self) -> None:
        """Tell all workers to hand in what they have."""
        self._told = time.monotonic() + _STOP_SECONDS
        self._client.run(_stop, self._name, on_error="ignore")

    def _drop(self) -> None:
        pending = [future for _, future in self._tags.values()]
        self._tags.clear()
        self._aims.clear()
        self._client.cancel(pending)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        with self._opened:
            # Without a scheduler there is nothing left to tidy up.
            with contextlib.suppress(Exception):
                if self._tags:
                    self._client.run(_stop, self._name, on_error="ignore")
                    self._drop()
                self._client.unregister_worker_plugin(self._name)


def is_local(where: Where) -> bool:
    """Say whether the cluster is one that is started here."""
    return isinstance(where, int) or (
        isinstance(where, str) and (where == LOCAL or where.isdecimal())
    )


def local_workers(where: Where, count: int | None) -> tuple[bool, int | None]:
    """Return whether a cluster is elsewhere, and how many workers it gets if it is started here.

    `count` is the number of workers that was asked for beside it.
    """
    if not is_local(where):
        if count is not None:
            raise ValueError("a cluster that is there already has the workers that it has")
        return True, None
    if where != LOCAL:
        if count is not None:
            raise ValueError("give one number of workers, not two")
        count = int(where)
    return False, len(shares(count))


def _client(where: Where, workers: int | None, opened: contextlib.ExitStack) -> distributed.Client:
    if isinstance(where, distributed.Client):
        return where
    # Dask tells at length of workers that die, which is what it is here for.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if is_local(where):
        count = workers or local_workers(where, None)[1]
        where = opened.enter_context(local_cluster(shares(count)))
    if hasattr(where, "scheduler_address"):
        return opened.enter_context(distributed.Client(where))
    if not isinstance(where, (str, os.PathLike)):
        raise ValueError(f"dask: wanted is a scheduler or a number of workers, got {where!r}")
    try:
        if Path(where).is_file():
            client = distributed.Client(scheduler_file=os.fspath(where), timeout=_ANSWER_SECONDS)
        else:
            client = distributed.Client(str(where), timeout=_ANSWER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise ValueError(
            f"dask: no scheduler answers at {where}: wanted is local, a number of local workers, "
            f"an address such as tcp://host:8786, or a scheduler's file ({error})"
        ) from None
    return opened.enter_context(client)


def local_cluster(environments: Sequence[Mapping[str, str]]) -> distributed.SpecCluster:
    """Start a cluster on this machine, with the environment of each worker, see `shares`."""
    # Dask's LocalCluster gives all workers the same environment.
    workers = {
        k: {
            "cls": distributed.Nanny,
            "options": {
                "nthreads": 1,
                "env": dict(environment),
                "memory_limit": 0,
                "host": "127.0.0.1",
                "dashboard": False,
                "silence_logs": logging.ERROR,
            },
        }
        for k, environment in enumerate(environments)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {
            "host": "127.0.0.1",
            "port": 0,
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
    }
    return distributed.SpecCluster(scheduler=scheduler, workers=workers, silence_logs=logging.ERROR)


# -- on a worker -----------------------------------------------------------------------------------


class _Preparation(WorkerPlugin):  # type: ignore[misc]
    """Brings the job to every worker, early or late."""

    def __init__(self, job: Job, name: str, own: bool) -> None:
        self.job, self.name, self.own, self.version = job, name, own, __version__

    def setup(self, worker: distributed.Worker) -> None:
        if self.own and threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches all processes of a terminal; the first of them decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.version != __version__:
            raise ValueError(
                f"the worker at {worker.address} has openmm-sd {__version__}, wanted is "
                f"{self.version} as where the work is shared out"
            )
        _jobs[self.name] = self.job

    def teardown(self, worker: distributed.Worker) -> None:
        # What it was at may look only later whether to stop, so the name stays.
        _jobs.pop(self.name, None)


def _work(name: str, order: Any) -> tuple[str, Any]:
    worker = distributed.get_worker()
    if worker.state.nthreads != 1:
        raise ValueError(
            f"the worker at {worker.address} makes {worker.state.nthreads} pieces at once: start "
            "workers with --nthreads 1, and as many as there are GPUs or groups of cores"
        )
    return worker.address, _jobs[name].work(order, lambda: name in _stopped)


def _stop(name: str) -> None:
    _stopped.add(name)
