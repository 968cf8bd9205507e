"""Calls in processes of their own, forked from one that has imported what takes seconds."""

import functools
import multiprocessing
import os
import resource
import sys
from unittest import mock

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["openmm_sd.cli.run", "openmm_sd.run", "openmm_sd.rollout", "openmm_sd.generate", "programs"]
)


class Program:
    """A call that goes on beside the test; what it prints is in two files of a folder.

    `call` is a function that can be imported, or a `functools.partial` of one; a number that it
    returns is the exit code, and 130 stands for Ctrl-C. With `largest` no file can grow beyond so
    many bytes. `changes` are values of names like ``package.module.NAME`` in that process only.
    """

    def __init__(self, call, folder, largest=None, changes=None, environment=None):
        self._files = [folder / name for name in ("stdout", "stderr")]
        arguments = (call, self._files, largest, changes or {}, environment or {})
        self._process = _FORKS.Process(target=_begin, args=arguments, daemon=True)
        # Each of them with one thread: what starts here is the process that the others come from.
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            self._process.start()
        self.pid = self._process.pid

    @property
    def running(self):
        return self._process.is_alive()

    @property
    def stdout(self):
        return self._files[0].read_text()

    @property
    def stderr(self):
        return self._files[1].read_text() if self._files[1].exists() else ""

    def send_signal(self, number):
        os.kill(self.pid, number)

    def wait(self, timeout=300):
        """The exit code, or minus the signal that ended it."""
        self._process.join(timeout)
        assert not self.running, "it does not end"
        return self._process.exitcode


def launch(*words, **settings):
    """The program ``openmm-sd`` in a process of its own: see `Program`."""
    from openmm_sd.cli import main

    return Program(functools.partial(main, [str(word) for word in words]), **settings)


def _begin(call, files, largest, changes, environment):
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    for name, value in changes.items():
        mock.patch(name, value).start()
    try:
        code = call()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
