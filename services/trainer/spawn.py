"""Starting the child process of a run, and ending it with everything it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import services
from services.trainer import protocol
from shared.contracts.nodes import Capacity
from shared.settings import PREFIX

RUN_ID_VARIABLE = "LLM_OS_RUN_ID"
"""In the environment of a child and of all it starts, so that leftovers are known for what they are."""
SOURCE = Path(services.__path__[0]).parent


class Child:
    """A child process in a session and process group of its own, with three pipes.

    The kernel kills it when the thread that called `start` ends, so that thread must outlive the run.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: int, reports: int, output: int) -> None:
        self._process = process
        self._control = control
        self.reports = reports
        self.output = output
        self.exited = os.pidfd_open(process.pid)
        """Readable once the process has ended."""
        self._guard = threading.Lock()
        self._sending = threading.Lock()
        self._reaped = False
        self._closed = False

    @classmethod
    def start(
        cls, job_type: str, workdir: Path, environment: Mapping[str, str], listener: socket.socket | None = None
    ) -> Child:
        """`listener`: a socket that the child takes over; close it here afterwards. Raises OSError."""
        with ExitStack() as theirs, ExitStack() as ours:
            control_end, control = _pipe(theirs, ours)
            reports, reports_end = _pipe(ours, theirs)
            output, output_end = _pipe(ours, theirs)
            handed = (control_end, reports_end, *([listener.fileno()] if listener else []))
            arguments = (job_type, str(os.getpid()), *map(str, handed))
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "services.trainer.child", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                pass_fds=handed,
                cwd=workdir,
                env=dict(environment),
                start_new_session=True,
            )
            ours.callback(_end, process)
            child = cls(process, control, reports, output)
            ours.pop_all()  # the child's from here on
            return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: protocol.Order) -> None:
        """Nothing happens where the child no longer listens: its end is noticed elsewhere."""
        line = protocol.encode(order)
        with self._sending:
            try:
                while line and not self._closed:
                    line = line[os.write(self._control, line) :]
            except BrokenPipeError:
                return

    def ask_to_stop(self) -> None:
        """SIGTERM to the child alone: its data loaders must live until it has saved."""
        self._signal(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        self._signal(os.killpg, signal.SIGKILL)

    def reap(self) -> int:
        """Once it has ended: kill what it left in its group and return its exit status (negative: the signal)."""
        self.kill()
        with self._guard:
            self._reaped = True
            return self._process.wait()

    def close(self) -> None:
        """Let go of the pipes. The child must have ended; what is sent to it from now on goes nowhere."""
        with self._sending:  # another pipe of this process may have that number next
            self._closed = True
            for fd in (self._control, self.reports, self.output, self.exited):
                os.close(fd)

    def _signal(self, send: Callable[[int, int], None], number: signal.Signals) -> None:
        with self._guard:  # a reaped pid may be another's
            if not self._reaped:
                send(self._process.pid, number)


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Its ends, each closed by its owner."""
    reading, writing = os.pipe()
    reader.callback(os.close, reading)
    writer.callback(os.close, writing)
    return reading, writing


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def child_environment(
    run_id: str, devices: list[int], cpus: float, capacity: Capacity, ranks: int = 1
) -> dict[str, str]:
    """The trainer's own environment less its settings (there are credentials among them), with this run's share of
    the machine. `devices` and `cpus` are those of all the attempt's `ranks` here."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **inherited,
        RUN_ID_VARIABLE: run_id,
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)),
        "OMP_NUM_THREADS": str(threads_for(devices, cpus, capacity, ranks)),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def threads_for(devices: list[int], cpus: float, capacity: Capacity, ranks: int = 1) -> int:
    """The run's equal share of the processors, more where the job asks for more, never more than there are. The
    attempt's ranks on this node divide it."""
    seats = len(capacity.devices) / len(devices) if devices else capacity.slots
    share = capacity.cpus / max(1.0, seats)
    return max(1, int(min(capacity.cpus, max(cpus, share)) / ranks))
