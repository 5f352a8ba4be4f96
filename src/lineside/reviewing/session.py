"""One person's way through the questions: what the page shows, and what becomes of what it sends.

Every action is in the log, on the disk, before the page hears that it is saved. The page says which state of a question
it has seen (`revision`): if another window has answered since, nothing is written and the page gets the new state. An
action that is sent twice, because the first answer was lost on the way, has the same key and counts once.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from threading import Lock
from typing import Annotated, Any, Literal

from pydantic import Field

from lineside.data.review_list import ReviewQuestion, Said, WrongForm
from lineside.errors import LinesideError
from lineside.reviewing.log import Entry, Log, now
from lineside.reviewing.sources import Review
from lineside.strict import Strict


class Sent(Strict):
    """An action as the page sends it."""

    question: Annotated[str, Field(max_length=5000)]
    revision: Annotated[int, Field(ge=0)]
    action: Literal["answer", "cannot tell", "skip"]
    answer: Annotated[str, Field(max_length=5000)] = ""
    key: Annotated[str, Field(min_length=8, max_length=100)]
    seconds: Annotated[float, Field(ge=0, le=1e7)] = 0.0


class SentUndo(Strict):
    """An undo: `last` is the key of the action that the page takes for the last one."""

    last: Annotated[str, Field(max_length=100)]
    key: Annotated[str, Field(min_length=8, max_length=100)]


class Stale(LinesideError):
    """Another window has changed the question since. `state` is what it is now."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__("this question was answered in another window; here is what stands now")
        self.state = state


class Session:
    """A person's session. Methods may be called from several threads."""

    def __init__(self, review: Review, log: Log, person: str, *, blind: bool) -> None:
        self.review, self._log, self.person, self.blind = review, log, person, blind
        self._places = {question.id: index for index, question in enumerate(review.questions)}
        self._lock = Lock()

    def state(self, at: str | None = None, step: int = 0) -> dict[str, Any]:
        """What the page shows: the question `at` (or the one `step` places after it), else the next open one."""
        with self._lock:
            if at is None:
                return self._state(self._next(-1))
            return self._state(min(max(self._place(at) + step, 0), len(self.review.questions) - 1))

    def save(self, sent: Sent) -> dict[str, Any]:
        """Write an action; returns the next state, and blind the same question with what others said.

        Raises WrongForm for an answer that is none, Stale, and LinesideError if it cannot be written.
        """
        with self._lock:
            place = self._place(sent.question)
            question = self.review.questions[place]
            known = self._log.known(sent.key)
            if known is not None and (known.question, known.action) != (sent.question, sent.action):
                raise LinesideError("an action of this key is in the log already, and it is another one")
            if known is None:
                if sent.revision != self._log.revision(question.id):
                    raise Stale(self._state(place))
                answer = question.form.read(sent.answer)[0] if sent.action == "answer" else ""
                entry = Entry(
                    at=now(),
                    question=question.id,
                    action=sent.action,
                    answer=answer,
                    key=sent.key,
                    asked=question.subject,
                    saw=self._shows(question),
                    seconds=round(sent.seconds, 1),
                )
                self._log.add(entry)
            reveal = self.blind and bool(question.said) and sent.action != "skip"
            return {**self._state(place if reveal else self._next(place)), "reveal": reveal}

    def undo(self, sent: SentUndo) -> dict[str, Any]:
        """Take back the last action; returns its question. Raises Stale if another window did something since."""
        with self._lock:
            last = self._log.last
            if self._log.known(sent.key) is not None:
                return self._state(self._next(-1))
            if last is None:
                raise LinesideError("there is nothing to undo")
            place = self._places.get(last.question)
            if last.key != sent.last:
                raise Stale(self._state(self._next(-1) if place is None else place))
            self._log.add(Entry(at=now(), question=last.question, action="undo", key=sent.key))
            return self._state(self._next(-1) if place is None else place)

    def picture(self, name: str) -> bytes:
        """The picture of a question. Raises LinesideError for an unknown question, or when it cannot be read."""
        return self.review.picture(self.review.questions[self._place(name)])

    def _place(self, name: str) -> int:
        if name not in self._places:
            raise LinesideError(f"no question {name[:80]!r} here")
        return self._places[name]

    def _next(self, place: int) -> int | None:
        """The next question without an answer after `place`, then from the start, skipped ones last; None: all done."""
        questions = self.review.questions
        order = [(place + 1 + offset) % len(questions) for offset in range(len(questions))]
        done = {index: self._entry(questions[index]) for index in order}
        open_ones = [index for index in order if done[index] is None]
        skipped = [index for index in order if (entry := done[index]) is not None and entry.action == "skip"]
        return next(iter(open_ones + skipped), None)

    def _entry(self, question: ReviewQuestion) -> Entry | None:
        """What the person last did with a question, as it is now."""
        entry = self._log.of(question.id)
        return entry if entry is not None and entry.is_about(question) else None

    def _shows(self, question: ReviewQuestion) -> bool:
        """Whether the page shows what others said; blind from the first answer on, since it cannot be unseen."""
        return bool(question.said) and (not self.blind or self._log.answered(question.id))

    def _state(self, place: int | None) -> dict[str, Any]:
        questions = self.review.questions
        actions = Counter(entry.action for q in questions if (entry := self._entry(q)) is not None)
        last = self._log.last
        after = None if place is None or place + 1 >= len(questions) else questions[place + 1].id
        return {
            "person": self.person,
            "blind": self.blind,
            "total": len(questions),
            "counts": {name: actions[name] for name in ("answer", "cannot tell", "skip")},
            "last": None if last is None else last.key,
            "question": None if place is None else self._shown(place),
            "next_picture": after,
            "reveal": False,
        }

    def _shown(self, place: int) -> dict[str, Any]:
        question = self.review.questions[place]
        entry, shows = self._entry(question), self._shows(question)
        mine = None if entry is None else {"action": entry.action, "answer": entry.answer}
        return {
            "id": question.id,
            "place": place,
            "task": question.task_name,
            "question": question.question,
            "frame": question.frame,
            "why": question.why if shows or not self.blind else "",
            "form": question.form.model_dump(),
            "expected": question.form.expected(),
            "said": [self._heard(question, said, mine) for said in question.said] if shows else [],
            "hidden": bool(question.said) and not shows,
            "proposal": entry.answer if entry is not None and entry.answer else self._proposal(question, shows),
            "mine": mine,
            "revision": self._log.revision(question.id),
        }

    @staticmethod
    def _heard(question: ReviewQuestion, said: Said, mine: dict[str, str] | None) -> dict[str, Any]:
        same = None
        if mine is not None and mine["action"] == "answer":
            same = question.form.same(said.answer, mine["answer"])
        return {**said.model_dump(), "same": same}

    @staticmethod
    def _proposal(question: ReviewQuestion, shows: bool) -> str:
        """The answer that Enter accepts: the record's, else the first that has the form."""
        for said in sorted(question.said, key=lambda said: said.by != "record") if shows else ():
            with suppress(WrongForm):
                return question.form.read(said.answer)[0]
        return ""
