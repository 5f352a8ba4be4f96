"""The thread that keeps a machine and its home together: models come, answers go, and a broken line stops neither."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from lineside.errors import LinesideError
from lineside.fleet.client import Home, Offline
from lineside.fleet.mirror import Mirror
from lineside.fleet.signing import opened
from lineside.fleet.state import read_state
from lineside.progress import say
from lineside.registry.store import now

BATCHES = 20  # of answers that are sent between two looks
LONGEST = 60.0  # seconds between two tries, however often home was not reached


@dataclass(frozen=True, slots=True)
class Status:
    """How a machine stands with its home. `reached`, `signed`: when home last answered, and vouched for what is here.
    `problem`: why the last look at home changed nothing that it should have; "" if all is well."""

    home: str
    serial: int = 0
    signed: str = ""
    reached: str = ""
    offline: bool = False
    problem: str = ""
    answers_waiting: int = 0
    answers_sent: int = 0
    answers_problem: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Outgoing(Protocol):
    """Answers that wait to be sent."""

    def send(self, home: Home) -> int:
        """Send some; returns how many. Raises LinesideError."""
        ...

    @property
    def waiting(self) -> int:
        """How many wait."""
        ...


class Machine:
    """A machine's side. `run` is its thread; the others read `status`."""

    def __init__(
        self,
        home: Home,
        mirror: Mirror,
        trusted: Sequence[Ed25519PublicKey],
        *,
        seconds: float,
        outgoing: Callable[[], Outgoing] | None = None,
    ) -> None:
        """`seconds`: between two looks at home. `outgoing`: made in the thread that uses it."""
        self._home, self._mirror, self._trusted, self._seconds = home, mirror, tuple(trusted), seconds
        self._make_outgoing = outgoing
        self._outgoing: Outgoing | None = None
        self._over, self._failures = threading.Event(), 0
        self._answers = True  # a model is here; if none is, `start` says why
        self.status = Status(home.url)

    def pull(self) -> None:
        """Look at home once, and take what it has signed. What goes wrong is told in `status` and in the log."""
        problem = ""
        facts: dict[str, Any] = {"offline": False}
        try:
            envelope = self._home.state()
            facts |= {"reached": now()}
            state = read_state(opened(envelope, self._trusted))
            if self._mirror.take(state, self._home):
                say(f"serve: state {state.serial} of home: {', '.join(self._mirror.labels) or 'no champion'}")
            facts |= {"serial": state.serial, "signed": state.time}
            self._mirror.take_trials(state, self._home)
        except LinesideError as error:
            problem, facts["offline"] = str(error), isinstance(error, Offline)
        self._told(problem, **facts)
        self._failures = self._failures + 1 if self.status.problem else 0

    def start(self) -> None:
        """The first look. Raises LinesideError if there is nothing to serve, neither at home nor from before."""
        self._answers = bool(self._mirror.labels)
        if self._answers:
            seen = self._mirror.seen
            self.status = replace(self.status, serial=seen.serial, signed=seen.time)
        self.pull()
        self._answers = bool(self._mirror.labels)
        if not self._answers:
            why = self.status.problem or "home has no champion for this cell: `lineside promote` makes one"
            raise LinesideError(f"there is no model here yet, and none could be fetched: {why}")
        threading.Thread(target=self._run, name="home", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after what it is doing."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._pause()):
            try:
                self.pull()
                self.send()
            except Exception as error:
                self._told(f"a bug in lineside, {type(error).__name__}: {error}", offline=False)

    def send(self) -> None:
        """Send answers that wait. What goes wrong is told in `status` and in the log."""
        if self._make_outgoing is None:
            return
        problem, sent, waiting = "", self.status.answers_sent, self.status.answers_waiting
        try:
            self._outgoing = outgoing = self._outgoing or self._make_outgoing()
            waiting = outgoing.waiting
            for _ in range(BATCHES):
                if self._over.is_set() or not (count := outgoing.send(self._home)):
                    break
                sent, waiting = sent + count, outgoing.waiting
        except LinesideError as error:
            problem = str(error)
        if problem and problem != self.status.answers_problem:
            say(f"serve: {waiting} answers wait to be sent home: {problem}")
        self.status = replace(self.status, answers_sent=sent, answers_waiting=waiting, answers_problem=problem)

    def _pause(self) -> float:
        """Seconds until the next look: longer after failures, and never the same for all machines."""
        longer = min(self._seconds * 2 ** min(self._failures, 8), max(LONGEST, self._seconds))
        return longer * random.uniform(0.8, 1.2)

    def _told(self, problem: str, **facts: Any) -> None:
        if problem != self.status.problem and self._answers:
            say(f"serve: {problem}; the models here answer on" if problem else "serve: home is reached again")
        self.status = replace(self.status, problem=problem, **facts)
