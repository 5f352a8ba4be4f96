"""What became of answers: logged answers, truths and verdicts, and the target that each outcome gives.

A truth (of a scale, a scanner, an operator) makes an ordinary target. Of a verdict alone, success makes the logged
answer the target, failure a target of kind `not`: only that answer is known to be wrong. A verdict may be the
gripper's fault, which the target's `doubt` says. All targets have the provenance `outcome`, and serve stage 3 alone.
Outcomes that contradict each other are all left out. Whether two answers are the same is the verifier's judgement.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lineside.data.tabular import AS_FOUND, delimiter_of, is_json, read_table
from lineside.data.tabular import Form as Written
from lineside.data.tasks import near_boundary
from lineside.data.times import YEARS, Times, instants
from lineside.data.values import DecimalSign, decimal_text, key_text, read_number, skus_of
from lineside.errors import LinesideError
from lineside.judgement.typed import Form, task_of
from lineside.strict import nearest
from lineside.types import Target
from lineside.verify.members import members_text
from lineside.verify.verifiers import MOST_WRONG, answer_to, verify

COLUMNS = (
    "id", "time", "model", "version", "frame", "question", "task", "answer", "decision", "confidence", "cell", "camera",
    "sku", "week", "scene", "truth", "verdict", "told",
)  # fmt: skip
SUCCEEDED = ("succeeded", "success", "ok", "pass", "passed", "right", "true", "yes", "1")
FAILED = ("failed", "failure", "nok", "fail", "wrong", "false", "no", "0")
EXAMPLES = 3  # of each reason, in messages
LAST_SECOND = datetime(YEARS.stop, 1, 1, tzinfo=UTC).timestamp()
ANSWER_SECONDS = 1.0  # a clock that differs by less is no other clock
_MEASURED = re.compile(r"([+-]?[0-9][0-9.,]*)( ?[^0-9+\-.,/ ][^0-9+\-,]*)?")  # a number, and its unit

UNREADABLE = "the row cannot be read"
UNKNOWN_ANSWER = "no answer of this id is in the log"
NO_PLACE = "nothing says which answer it is about (an id; or frame and question; or a time with --within)"
NONE_FITS, SEVERAL_FIT = "no logged answer fits it", "several logged answers fit it: give the id, or its task"
SAME_ID = "answers that differ have the same id"
EARLIER, NO_TIME = "it was told before --since", "nothing says when it was told, as --since needs"
NOTHING_TOLD = "neither a truth nor a verdict"
NO_VERDICT = f"the verdict cannot be read (expected {SUCCEEDED[0]} or {FAILED[0]})"
NO_TASK = "the task of the question is not known"
NO_FORM = "it is not known how answers of its task are compared"
NO_TRUTH = "the truth is no answer to the question"
NEAR = "the truth lies near a rounding boundary"
NO_ANSWER = "there is no answer of the task's kind that could be right or wrong"
DUPLICATE = "told before"
OUTDONE = "a truth says more than this verdict"
TRUTHS, VERDICTS = "contradicting truths", "contradicting verdicts"


@dataclass(frozen=True, slots=True)
class Logged:
    """An answer as it was logged. `frame`: key, path or id of its picture; of several pictures the keys, with commas.
    `about`: how the picture was cut, and the pictures beside it (serving.outcomes.About). `home`: its file."""

    home: Path
    where: str
    id: str = ""
    time: float | None = None  # seconds since 1970, UTC
    model: str = ""
    version: str = ""
    frame: str = ""
    question: str = ""
    task: str = ""
    answer: str | None = None
    decision: str = ""
    cell: str = ""
    camera: str = ""
    skus: tuple[str, ...] = ()
    week: int = 0
    scene: str = ""
    form: Form | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What is drawn together with it in a test: its scene, else the next best that is known."""
        return self.scene or self.frame or self.id or self.where


@dataclass(frozen=True, slots=True)
class Told:
    """An outcome: a truth, or only whether acting on the answer succeeded."""

    answer: Logged
    truth: str | None
    succeeded: bool | None
    time: float | None
    where: str

    @property
    def kind(self) -> str:
        """truth, success or failure."""
        return "truth" if self.truth is not None else "success" if self.succeeded else "failure"


@dataclass(frozen=True, slots=True)
class Found:
    """The target that the outcomes of a question about a frame give. `by`: truth, success or failure."""

    told: tuple[Told, ...]
    task: str
    target: Target
    by: str


@dataclass
class Account:
    """What became of each outcome: read = used + left out, by reason. `rows`: those left out. `untold`: answers of
    which nothing is told."""

    answers: int = 0
    untold: int = 0
    read: int = 0
    used: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def leave(self, reason: str, where: str, detail: str = "") -> None:
        """Count an outcome that is not used."""
        self.left_out[reason] += 1
        self.rows.append({"where": where, "reason": reason, **({"detail": detail} if detail else {})})

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the rows."""
        return {
            "answers": self.answers,
            "untold": self.untold,
            "outcomes": self.read,
            "used": {kind: count for kind, count in self.used.items() if count},
            "left_out": dict(self.left_out.most_common()),
            "remarks": self.remarks,
        }

    def told(self) -> str:
        """The commonest reasons with an example each, for a message."""
        first: dict[str, dict[str, str]] = {}
        for row in self.rows:
            first.setdefault(row["reason"], row)
        parts = [
            f"{count:,} {why} (such as {first[why]['where']}{': ' + d if (d := first[why].get('detail')) else ''})"
            for why, count in self.left_out.most_common(EXAMPLES)
        ]
        return "; ".join(parts) or "there are none"


@dataclass(frozen=True, slots=True)
class Noise:
    """How often verdicts err. `false_failures`: share of right answers that are reported as failed (the gripper's
    fault); `false_successes`: share of wrong answers that are reported as a success."""

    false_failures: float = 0.1
    false_successes: float = 0.0

    def __post_init__(self) -> None:
        """Raises LinesideError for rates by which a verdict says nothing."""
        rates = (self.false_failures, self.false_successes)
        if not all(0 <= rate < 1 for rate in rates) or sum(rates) >= 1:
            raise LinesideError(
                f"false failures {rates[0]:g} and false successes {rates[1]:g}: expected shares from 0 to 1 with a sum "
                "below 1; else a verdict says nothing about the answer"
            )

    @property
    def doubt(self) -> float:
        """P(failed | right) / P(failed | wrong)."""
        return self.false_failures / (1 - self.false_successes)


NOISE = Noise()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: an answer, an outcome, or both. `place`: which answer the outcome is about. `semicolons`:
    whether they separate the fields of the table; None: it is no table, but a server's log."""

    place: Logged
    has_answer: bool
    truth: Any
    verdict: Any
    told: float | None
    semicolons: bool | None = None


def read_file(path: Path, names: Mapping[str, str], account: Account, written: Written = AS_FOUND) -> list[Row]:
    """The rows of a CSV file or of JSON lines. `names`: other names of columns, by ours. Raises LinesideError for a
    file that is no table, and for columns that are not there."""
    rows = [(number, row) for number, row in read_table(path, written)]
    for number, reason in rows:
        if isinstance(reason, str):
            account.read += 1
            account.leave(UNREADABLE, f"{path.name} row {number}", reason)
    good = [(number, row) for number, row in rows if not isinstance(row, str)]
    columns = list(dict.fromkeys(name for _, row in good for name in row))
    for ours, theirs in names.items():
        if ours not in COLUMNS:
            raise LinesideError(f"--column {ours}: no such column{nearest(ours, COLUMNS)}; ours: {', '.join(COLUMNS)}")
        if good and theirs not in columns:
            raise LinesideError(f"{path}: no column {theirs!r}{nearest(theirs, columns)}; it has {', '.join(columns)}")
    if good and not {"answer", "truth", "verdict"} & {*columns, *names}:
        raise LinesideError(
            f"{path}: no column answer, truth or verdict; it has {', '.join(columns)}. Name them with --column, such "
            f"as --column truth={columns[0]}"
        )
    named = [(number, {**row, **{ours: row.get(theirs) for ours, theirs in names.items()}}) for number, row in good]
    times = Times()
    for _, row in named:
        for name in ("time", "told"):
            if isinstance(row.get(name), str):
                times.note(row[name])
    found: list[Row] = []
    semicolons = not is_json(path) and delimiter_of(path, written) == ";"
    for number, row in named:
        try:
            found.append(_row(path, number, row, times, semicolons))
        except ValueError as error:
            account.read += 1
            account.leave(UNREADABLE, f"{path.name} row {number}", str(error))
    return found


def _row(path: Path, number: int, row: Mapping[str, Any], times: Times, semicolons: bool) -> Row:
    answer, about = row.get("answer"), row.get("about")
    typed = answer if isinstance(answer, dict) else {}  # as the server lists it
    about = about if isinstance(about, dict) else {}
    text = typed.get("text") if typed else answer
    skus = row.get("sku", about.get("skus"))
    skus = skus.replace(";", "|") if isinstance(skus, str) else skus
    week = str(row.get("week") or 0)
    place = Logged(
        home=path, where=f"{path.name} row {number}", id=key_text(row.get("id")),
        time=_seconds(row.get("time"), times, "time"),
        **{name: _text(row.get(name)) for name in ("model", "version", "frame", "question", "scene")},
        task=_text(row.get("task") or typed.get("task")), answer=None if text in (None, "") else answer_of(text),
        decision=_text(row.get("decision") or typed.get("decision")),
        cell=key_text(row.get("cell") or about.get("cell")), camera=key_text(row.get("camera") or about.get("camera")),
        skus=skus_of(skus), week=int(week) if week.isdecimal() else 0,
        form=form_of(about.get("form")), about=about,
    )  # fmt: skip
    truth, verdict = row.get("truth"), row.get("verdict")
    truth, verdict = (None if value in (None, "") else value for value in (truth, verdict))
    if verdict == "unknown" or (truth is not None and verdict in ("right", "wrong")):
        verdict = None  # the server's judgement of the truth
    return Row(place, text not in (None, ""), truth, verdict, _seconds(row.get("told"), times, "told"), semicolons)


def form_of(plain: Any) -> Form | None:
    """The form that a log keeps beside an answer. Raises ValueError for one that cannot be read."""
    try:
        return None if plain is None else Form.model_validate_json(json.dumps(plain))
    except (ValidationError, TypeError) as error:
        raise ValueError(f"its form cannot be read ({' '.join(str(error).split())[:120]})") from None


def answer_of(value: Any) -> str:
    """An answer of a table as text: yes and no for a boolean, members with commas for a list, "x, y" for a pair of
    numbers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(answer_of, value)) or "none"
    if isinstance(value, dict):
        return members_text([name for name, n in value.items() for _ in range(n if isinstance(n, int) else 1)])
    return _text(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _seconds(value: Any, times: Times, column: str) -> float | None:
    """Seconds since 1970; a time without a zone is taken as UTC, a number beyond `YEARS` as thousandths and so on.
    Raises ValueError for one that cannot be read."""
    if value in (None, ""):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 <= value < LAST_SECOND:
        return float(value)
    try:
        return instants(times.read(decimal_text(value) if number else str(value)), None)[0] / 1e6
    except ValueError:
        told = f"{column} {str(value)!r:.40} cannot be read, or not in one way only: write 2026-03-01T10:15:00Z"
        raise ValueError(told) from None


def told_time(seconds: float | None) -> str:
    """For the metadata of a sample: ISO 8601, UTC; "" where it is not known."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# --- outcomes to the answers they belong to


def join(
    rows: Iterable[Row], answers: Sequence[Logged], forms: Mapping[str, Form], account: Account, *,
    within: float | None = None, decimal: str | None = None,
) -> list[Told]:  # fmt: skip
    """The outcomes of the rows, each with its answer: that of its own row, else of `answers`, by id, by frame and
    question (or task), or by time: the last answer of its cell at most `within` seconds before it.

    `forms`: of tasks, where the log has none. `decimal`: the decimal sign of truths in tables; None: as the truths of a
    table show. Raises LinesideError where they could mean either.
    """
    book = _Book(answers)
    told: list[tuple[Row, Told]] = []
    for row in rows:
        if row.truth is None and row.verdict is None:
            if not row.has_answer:
                account.read += 1
                account.leave(NOTHING_TOLD, row.place.where)
            continue
        account.read += 1
        answer = row.place if row.has_answer else book.find(row.place, row.told, within)
        if isinstance(answer, str):
            account.leave(answer, row.place.where, row.place.id)
            continue
        verdict = None if row.verdict is None else answer_of(row.verdict).lower()
        if row.truth is None and verdict not in (*SUCCEEDED, *FAILED):
            account.leave(NO_VERDICT, row.place.where, verdict or "")
            continue
        truth = None if row.truth is None else answer_of(row.truth)
        when = row.told if row.told is not None or row.has_answer else row.place.time
        succeeded = None if truth is not None else verdict in SUCCEEDED
        told.append((row, Told(answer, truth, succeeded, when, row.place.where)))
    found = list(_with_points(told, forms, account, decimal))
    _remark_on_clocks(found, account)
    return found


def _with_points(
    told: Sequence[tuple[Row, Told]], forms: Mapping[str, Form], account: Account, decimal: str | None
) -> Iterable[Told]:
    """The outcomes with the numbers of their truths as a verifier reads them, with a decimal point: a scale may write
    0,122 kg, which would be 122 kg. All numbers of a table tell its decimal sign. Raises LinesideError where they do
    not."""
    signs: defaultdict[tuple[Path, bool], DecimalSign] = defaultdict(DecimalSign)
    measured = [_measured(row, one, forms) for row, one in told]
    for (row, _), found in zip(told, measured):
        if found is not None:
            signs[row.place.home, bool(row.semicolons)].note(found[0])
    by_home = {home: decimal or _decided(home, sign, semicolons) for (home, semicolons), sign in signs.items()}
    account.remarks += [f"the truths of {home.name} have a decimal comma" for home, s in by_home.items() if s == ","]
    for (row, one), found in zip(told, measured):
        if found is None or by_home[row.place.home] == ".":
            yield one
        elif (truth := _pointed(*found, groups=decimal is not None)) is None:
            account.leave(NO_TRUTH, one.where, one.truth or "")
        else:
            yield replace(one, truth=truth)


def _measured(row: Row, one: Told, forms: Mapping[str, Form]) -> tuple[str, str] | None:
    """The number and the unit of a truth that a table gives as text."""
    if row.semicolons is None or not isinstance(row.truth, str):
        return None
    return _number_and_unit(row.truth, one.answer.form or forms.get(task_in(one.answer, forms)))


def _number_and_unit(truth: str, form: Form | None) -> tuple[str, str] | None:
    found = _MEASURED.fullmatch(truth.strip()) if form is not None and form.kind == "number" else None
    return None if found is None else (found[1], found[2] or "")


def with_point(truth: str, form: Form | None) -> str:
    """A truth that is told alone, its number with a decimal point: "0,122 kg" is "0.122 kg".

    Raises ValueError for a number that could be with thousands or with decimals: "1,322 kg".
    """
    if (found := _number_and_unit(truth, form)) is None:
        return truth
    sign = DecimalSign()
    sign.note(found[0])
    return truth if sign.decide() == "." else _pointed(*found) or truth


def _pointed(number: str, unit: str, *, groups: bool = False) -> str | None:
    """A number with a decimal comma as one with a point, and its unit; None if it is no number."""
    value = read_number(number, ",", groups=groups)
    return None if value is None else f"{decimal_text(value)}{unit}"


def _decided(home: Path, sign: DecimalSign, semicolons: bool) -> str:
    try:
        return sign.decide(semicolons=semicolons)
    except ValueError as error:
        raise LinesideError(
            f"{home}: its column of truths {error}: say `--decimal ,` or `--decimal .`, or write all with a point and "
            "without thousands"
        ) from None


class _Book:
    """Logged answers, to be found again."""

    def __init__(self, answers: Sequence[Logged]) -> None:
        self._by_id: dict[str, Logged | None] = {}  # None: several that differ
        self._by_frame: defaultdict[str, list[Logged]] = defaultdict(list)
        self._timed = sorted((a for a in answers if a.time is not None), key=lambda a: a.time or 0.0)
        self._times = [answer.time or 0.0 for answer in self._timed]
        for answer in answers:
            self._by_frame[answer.frame].append(answer)
            if answer.id:
                first = self._by_id.setdefault(answer.id, answer)
                alike = first is not None and _said(first) == _said(answer)
                self._by_id[answer.id] = first if alike else None

    def find(self, place: Logged, told: float | None, within: float | None) -> Logged | str:
        """The answer that an outcome is about, or why there is none."""
        if place.id:
            return (self._by_id[place.id] or SAME_ID) if place.id in self._by_id else UNKNOWN_ANSWER
        if place.frame and (place.question or place.task):
            return _last([a for a in self._by_frame.get(place.frame, ()) if _asks(a, place)])
        at = place.time if place.time is not None else told
        if within is None or at is None:
            return NO_PLACE
        near = self._timed[bisect_left(self._times, at - within) : bisect_right(self._times, at)]
        return _last([a for a in near if _asks(a, place) and (not place.cell or a.cell == place.cell)])


def _said(answer: Logged) -> tuple[str | None, ...]:
    return answer.frame, answer.question, answer.answer


def _asks(answer: Logged, place: Logged) -> bool:
    """Whether an answer is to the question, and of the task, that an outcome names."""
    return (not place.question or answer.question == place.question) and (not place.task or answer.task == place.task)


def _last(answers: Sequence[Logged]) -> Logged | str:
    if not answers:
        return NONE_FITS
    return answers[-1] if len({(a.task, a.question) for a in answers}) == 1 else SEVERAL_FIT


def _remark_on_clocks(told: Iterable[Told], account: Account) -> None:
    early = [t.answer.time - t.time for t in told if t.time is not None and t.answer.time is not None]
    early = [seconds for seconds in early if seconds > ANSWER_SECONDS]
    if early:
        account.remarks.append(
            f"{len(early):,} outcomes are told before their answer was given, by up to {max(early):,.0f} s: the clocks "
            "differ (a time without a zone is taken as UTC)"
        )


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a time that a person gives. Raises LinesideError for one that cannot be read."""
    times = Times()
    times.note(text)
    try:
        return _seconds(text, times, "--since") or 0.0
    except ValueError as error:
        raise LinesideError(str(error)) from None


def told_since(told: Iterable[Told], since: float | None, account: Account) -> list[Told]:
    """The outcomes that were told at a time (seconds since 1970) or later; where only the answer has a time, it counts.
    None: all."""
    found: list[Told] = []
    for one in told:
        when = one.time if one.time is not None else one.answer.time
        if since is None or (when is not None and when >= since):
            found.append(one)
        else:
            account.leave(NO_TIME if when is None else EARLIER, one.where)
    return found


# --- outcomes to targets


def settle(
    told: Sequence[Told], forms: Mapping[str, Form], noise: Noise, account: Account, *,
    picture: Callable[[Logged], str] = lambda answer: answer.frame,
) -> list[Found]:  # fmt: skip
    """The targets that outcomes give, one for a question about a frame. `forms`: of tasks, where the log has none.
    `picture`: what an answer's picture is known by: tables in two folders may name two pictures alike."""
    groups: dict[tuple[str, ...], list[Told]] = {}
    for one in told:
        answer = one.answer
        beside = json.dumps([answer.about.get(name) for name in ("beside", "box")])
        groups.setdefault((picture(answer), answer.question, answer.task, beside), []).append(one)
    found = (_settle(group, forms, noise, account) for group in groups.values())
    return [one for one in found if one is not None]


def _settle(group: Sequence[Told], forms: Mapping[str, Form], noise: Noise, account: Account) -> Found | None:
    """The target of the outcomes about one question of one frame; None if they give none."""
    task = task_in(group[0].answer, forms)
    by: dict[str, list[tuple[Told, Target]]] = {"truth": [], "success": [], "failure": []}
    seen: set[tuple[str, str, str]] = set()
    for one in group:
        said = one.truth if one.truth is not None else one.answer.answer or ""
        target = _target(one, said, task, forms)
        if isinstance(target, str):
            account.leave(target, one.where, said[:60])
        elif (key := (one.answer.id or one.answer.where, one.kind, said)) in seen:
            account.leave(DUPLICATE, one.where)
        else:
            seen.add(key)
            by[one.kind].append((one, target))
    truths, successes, failures = by.values()
    used, clash = truths or successes + failures, ""
    if truths:
        for one, _ in successes + failures:
            account.leave(OUTDONE, one.where)
        clash = TRUTHS if _differ(truths) else ""
    elif successes and (_differ(successes) or any(_same(one, other) for one in failures for other in successes)):
        clash = VERDICTS
    for one, _ in used:
        if clash:
            account.leave(clash, one.where, one.truth or one.answer.answer or "")
        else:
            account.used[one.kind] += 1
    if clash or not used:
        return None
    told = tuple(one for one, _ in used)
    if truths or successes:
        return Found(told, task, used[0][1], told[0].kind)
    different: list[tuple[Told, Target]] = []
    for one in failures:
        if not any(_same(one, other) for other in different):
            different.append(one)
    wrong = tuple(target for _, target in different[:MOST_WRONG])
    return Found(told, task, Target("not", "outcome", wrong=wrong, doubt=noise.doubt), "failure")


def task_in(answer: Logged, forms: Mapping[str, Form]) -> str:
    """The task of an answer as family/task: the logged one, else the one that asks so; "" if it is not known."""
    task = answer.task or task_of(answer.question, forms)[0] or ""
    return task if task.count("/") == 1 and all(task.split("/")) else ""


def _target(one: Told, said: str, task: str, forms: Mapping[str, Form]) -> Target | str:
    """What an outcome says: the target if `said` is the truth. Else why it says nothing."""
    if not task or not one.answer.question:
        return NO_TASK
    form = one.answer.form or forms.get(task)
    if form is None or not form.is_compared:
        return NO_FORM
    target = form.target_for(said, "outcome")
    if one.truth is None:  # the answer itself: it must be one that can be exact
        return target if target is not None and verify(said, target).exact else NO_ANSWER
    if target is None:
        return NO_TRUTH
    return NEAR if target.kind == "number" and near_boundary(target.value, target.resolution) else target


def _same(one: tuple[Told, Target], other: tuple[Told, Target]) -> bool:
    """Whether two outcomes are about the same answer, by the verifier."""
    return one[1] == other[1] or verify(answer_to(one[1]), other[1]).exact


def _differ(group: Sequence[tuple[Told, Target]]) -> bool:
    """Whether truths, or answers that succeeded, are not all the same."""
    return not all(_same(one, group[0]) for one in group[1:])
