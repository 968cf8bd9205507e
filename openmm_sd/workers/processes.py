"""Processes of this program that are told what to do, and answer, in lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TextIO

from ..files.atomic import one_line
from .schedule import Task


class Helper:
    """A process of this program (``python -m module``), seen from the one that started it.

    `answers` gets ``(helper, answer)`` for each line of its standard output, and ``(helper, None)``
    at the end. `environment` is added to that of this process, and the descriptors in `keep` are
    inherited.
    """

    def __init__(
        self,
        module: str,
        answers: queue.Queue[tuple[Helper, dict[str, Any] | None]],
        environment: Mapping[str, str] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=tuple(keep),
            # Ctrl-C reaches only this process, which tells its helpers.
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def send(self, content: Any) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone, and the end of its answers will say so

    def dismiss(self) -> None:
        """Tell it that nothing more is to be done; it ends when it has done what it was told."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass

    def stop(self) -> None:
        """Ask it to finish what it is doing and to save it."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        code = self._process.wait()
        self.dismiss()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def _listen(self, answers: queue.Queue[tuple[Helper, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                answers.put((self, json.loads(line)))
        except ValueError:
            pass  # cut short by a kill
        finally:
            answers.put((self, None))


class ProcessPool(Generic[Task]):
    """Makes tasks in processes of this machine: a pool for `openmm_sd.workers.schedule`.

    There are as many processes at the same time as `environments`. Each runs ``python -m module``
    and is told `job` first, if there is one, then ``order(task)`` for each task. It answers
    ``{"done": ...}`` or ``{"stopped": ...}`` at the end of a task, ``{"error": ...}`` where it
    cannot be made. With `job` it then waits for the next task; without, it ends. It inherits the
    descriptors in `keep`.
    """

    def __init__(
        self,
        module: str,
        environments: Sequence[Mapping[str, str]],
        order: Callable[[Task], Any],
        job: Any = None,
        keep: Sequence[int] = (),
    ) -> None:
        self._module, self._order, self._job, self._keep = module, order, job, keep
        self.slots = len(environments)
        self._free = list(reversed(environments))
        self._environment: dict[Helper, Mapping[str, str]] = {}
        self._answers: queue.Queue[tuple[Helper, dict[str, Any] | None]] = queue.Queue()
        self._idle: list[Helper] = []
        self._at: dict[Helper, Task] = {}
        self._ended: set[Helper] = set()
        self._told = False

    @property
    def busy(self) -> int:
        """How many tasks are being made."""
        return len(self._at)

    @property
    def pids(self) -> dict[Task, int]:
        """The process that makes each task."""
        return {task: helper.pid for helper, task in self._at.items()}

    def start(self, task: Task) -> None:
        """Begin a task, or resume it."""
        if not self._idle:
            environment = self._free.pop()
            helper = Helper(self._module, self._answers, environment, self._keep)
            self._environment[helper] = environment
            if self._job is not None:
                helper.send(self._job)
            self._idle.append(helper)
        helper = self._idle.pop()
        self._at[helper] = task
        helper.send(self._order(task))

    def events(self, seconds: float) -> list[tuple[Task, dict[str, Any]]]:
        """Wait for an event, at most so long."""
        try:
            helper, answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            return []
        if answer is None:
            code = helper.wait()
            self._free.append(self._environment.pop(helper))
            if helper not in self._at:
                self._idle.remove(helper)
                return []
            task = self._at.pop(helper)
            lost = helper not in self._ended and not self._told
            return [(task, {"lost": code})] if lost else []
        task = self._at[helper]
        if "error" in answer or (self._job is None and ("done" in answer or "stopped" in answer)):
            self._ended.add(helper)
        elif "done" in answer:
            del self._at[helper]
            self._idle.append(helper)
        return [(task, answer)]

    def stop(self) -> None:
        """Have what is being made cut short and kept."""
        self._told = True
        for helper in self._at:
            helper.stop()

    def close(self) -> None:
        """End all."""
        for helper in self._at:
            helper.stop()
        for helper in (*self._at, *self._idle):
            helper.dismiss()
        for helper in (*self._at, *self._idle):
            helper.wait()


#: What a helper does: it gets the lines of its orders, what sends an answer, and whether to stop.
Work = Callable[[TextIO, Callable[[dict[str, Any]], None], Callable[[], bool]], None]


def serve(work: Work) -> None:
    """Be a helper: what a helper's module does when it is run.

    `work` is called with the stream of lines that the parent sends, with what sends an answer to
    it, and with what says whether to stop: after SIGTERM, or when the parent is gone.
    """
    # The parent decides what Ctrl-C means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    parent = os.getppid()
    # What libraries print must not get between the lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(content) + "\n")
            answers.flush()
        except OSError:  # the parent is gone
            stop.append(0)

    try:
        work(sys.stdin, say, lambda: bool(stop) or os.getppid() != parent)
    except Exception as error:
        say({"error": one_line(error), "kind": type(error).__name__})
        raise
