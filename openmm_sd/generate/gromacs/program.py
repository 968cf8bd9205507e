"""The ``gmx`` of this machine: its version, its commands, and a simulation under way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..dynamics import BlownUp

#: The first year of GROMACS whose barostat is right for a relaxation that counts.
_LEAST_YEAR: Final = 2021
_POLL_SECONDS: Final = 0.1
# A simulation told to stop does so within some steps; one that does not is stuck.
_PATIENCE_SECONDS: Final = 60.0
#: Ends GROMACS when the process that started it is killed.
_KEEPER: Final = Path(__file__).with_name("keeper.py")
# What GROMACS says, or how it dies, when coordinates have left what is possible.
_BLOWN_UP: Final = re.compile(
    r"Too many LINCS warnings|cannot be settled|could not be settled|not finite|is nan|"
    r"constraint error|moved too far|too large forces|outside the (table|domain)",
    re.IGNORECASE,
)
_DISK: Final = re.compile(r"No space left|Disk quota|disk full|Input/output error|File too large")


class BrokenRunError(BlownUp):
    """GROMACS gave a simulation up because of its coordinates."""


@dataclass(frozen=True)
class Gromacs:
    """A GROMACS that works: where ``gmx`` is, and what it was built for, such as ``AVX2_256``."""

    path: str
    version: str
    simd: str

    @property
    def name(self) -> str:
        """What people call it."""
        return f"GROMACS {self.version}"

    def command(self, folder: Path, *arguments: str) -> str:
        """Run a short command and return what it printed; RuntimeError with its own reason."""
        done = subprocess.run(
            [self.path, "-quiet", *arguments],
            cwd=folder,
            env=_environment(1),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"gmx {arguments[0]}: {_reason(done.stderr, done.returncode)}")
        return done.stdout

    def preprocess(
        self, folder: Path, name: str, settings: Mapping[str, object], start: str, topology: str
    ) -> None:
        """Make NAME.tpr of settings, a start and a topology; files are named within the folder."""
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (folder / f"{name}.mdp").write_text(text)
        files = ("-f", f"{name}.mdp", "-c", start, "-p", topology, "-po", f"{name}.mdout.mdp")
        index = () if not (folder / "index.ndx").exists() else ("-n", "index.ndx")
        self.command(folder, "grompp", *files, *index, "-maxwarn", "5", "-o", f"{name}.new.tpr")
        (folder / f"{name}.mdout.mdp").unlink(missing_ok=True)
        # A simulation whose tpr is there has all that it needs.
        (folder / f"{name}.new.tpr").replace(folder / f"{name}.tpr")

    def simulate(
        self,
        folder: Path,
        name: str,
        *options: str,
        threads: int = 1,
        stopped: Callable[[], bool] = lambda: False,
        watch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Run NAME.tpr to its end, or until `stopped` says so; return whether it came to its end.

        All that is written has that name. Told to stop, GROMACS writes a checkpoint. `options` are
        those of ``gmx mdrun``; `watch` is called all the time. BrokenRunError if coordinates left
        what is physically possible, OSError if a file could not be written, RuntimeError if it
        failed for another reason.
        """
        arguments = ("mdrun", "-s", f"{name}.tpr", "-deffnm", name, "-ntmpi", "1")
        output = folder / f"{name}.out"
        with open(output, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_KEEPER), str(os.getpid()), self.path),
                    *(*arguments, "-ntomp", str(threads), "-pin", "off", *options),
                ],
                cwd=folder,
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches only this process, which tells GROMACS.
                start_new_session=True,
            )
        told = False
        try:
            while process.poll() is None:
                if not told and stopped():
                    process.send_signal(signal.SIGTERM)
                    told, until = True, time.monotonic() + _PATIENCE_SECONDS
                if told and time.monotonic() > until:
                    os.killpg(process.pid, signal.SIGKILL)
                watch()
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        watch()
        text = output.read_text(encoding="utf-8", errors="replace")
        if process.returncode == 0:
            return not told or "Received the TERM signal" not in text
        if told:
            return False
        reason = _reason(text, process.returncode)
        if _DISK.search(text):
            raise OSError(f"GROMACS could not write in {folder}: {reason}")
        if _BLOWN_UP.search(text) or process.returncode in (-signal.SIGSEGV, -signal.SIGFPE):
            raise BrokenRunError(reason)
        raise RuntimeError(f"gmx mdrun: {reason}")


def find_gromacs(path: str | None = None) -> Gromacs:
    """Look for GROMACS at a path, or where a shell would find it, and see that it works.

    ValueError in one line if there is none, it does not work, or it is too old.
    """
    found = shutil.which(path or "gmx")
    if found is None:
        where = "there is no program gmx" if path is None else f"{path} is not a program"
        raise ValueError(
            f"{where}: install GROMACS (Debian, Ubuntu: apt-get install gromacs) or name its gmx "
            "(--gmx)"
        )
    found = os.path.abspath(found)
    try:
        text = subprocess.run(
            [found, "--version"], capture_output=True, text=True, check=True, env=_environment(1)
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{found} does not run: {error}") from None
    version = re.search(r"GROMACS version:\s*(\S+)", text)
    if version is None:
        raise ValueError(f"{found} does not say that it is GROMACS")
    year = re.match(r"\d{4}", version[1])
    if year is None or int(year[0]) < _LEAST_YEAR:
        raise ValueError(f"{found} is GROMACS {version[1]}; needed is {_LEAST_YEAR} or newer")
    simd = re.search(r"SIMD instructions:\s*(\S+)", text)
    return Gromacs(found, version[1], simd[1] if simd else "unknown")


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "GMX_MAXBACKUP": "-1", "OMP_NUM_THREADS": str(threads)}


def _reason(text: str, code: int) -> str:
    """Return GROMACS's reason for failing in one line."""
    found = re.search(r"(?:Fatal error|Error[^\n]*):\s*\n(.*?)\n\s*\n", text + "\n\n", re.DOTALL)
    if found is not None:
        return " ".join(found[1].split())
    lines = [line for line in text.splitlines() if line.strip()]
    if code < 0:
        return f"ended by signal {-code}"
    return f"exit code {code}: {lines[-1].strip() if lines else 'without a word'}"
