"""outcomes report: logged answers and what became of them -> live accuracy, drift of answers, alarms.

The live accuracy of each task, cell and SKU has an interval that allows for wrong verdicts, and stands beside what the
held-out evaluation promised. The answers of now are compared with those of before. Each kind of alarm has a probability
of a false one of at most `--level`, over all its tests (judgement/live.py).

Left out: why the floor is worse (`lineside drift` looks at the pictures, `lineside select` names those to label).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from lineside.errors import CheckFailed, LinesideError, TooLittleData
from lineside.judgement.console import new_table, show
from lineside.judgement.live import AnswerDrift, Group, Promise, answer_drift, judged, live, promises
from lineside.judgement.outcomes import NOISE, Account, Logged, Noise, join, told_since
from lineside.judgement.schema import read_evaluation, read_rows, rows_path
from lineside.progress import say
from lineside.serving.outcome_sources import Sources, like


def report(
    sources: Sources,
    *,
    before: Sequence[Path] = (),
    promised: Sequence[Path] = (),
    noise: Noise = NOISE,
    within: float | None = None,
    margin: float = 0.03,
    level: float = 0.05,
    as_json: bool = False,
) -> None:
    """Print the live accuracy, and the drift of answers since `before` (logs of answers).

    `promised`: evaluations; what they say of a task is what the floor should get, less the margin. Raises CheckFailed
    if there is an alarm, TooLittleData where nothing is told and nothing compared, LinesideError for bad input.
    """
    if not 0 < level < 1:
        raise LinesideError(f"--level {level}: expected a probability such as 0.05, the chance of any false alarm")
    account = Account()
    rows, answers, _ = sources.read(account)
    forms, _ = like(sources.like)
    joined = join(rows, answers, forms, account, within=within, decimal=sources.written.decimal)
    told = judged(told_since(joined, sources.since, account), forms, account)
    if sources.since is not None:
        answers = [answer for answer in answers if answer.time is not None and answer.time >= sources.since]
    groups = live(told, noise, _promised(promised), margin=margin, level=level) if told else []
    drifts = answer_drift(_before(before, sources), answers, forms, level=level) if before else []
    if not groups and not drifts:
        raise TooLittleData(f"of {account.answers:,} answers no outcome can be used: {account.told()}")
    if as_json:
        plain = {"accuracy": [asdict(group) for group in groups], "drift": [asdict(drift) for drift in drifts]}
        print(
            json.dumps({**plain, **account.to_json(), "level": level, "margin": margin}, indent=2, ensure_ascii=False)
        )
    else:
        _tell(groups, drifts, account, level, margin)
    alarms = [f"{group.name}: fewer answers are right than promised" for group in groups if group.alarm]
    alarms += [f"{drift.name}: the answers have changed" for drift in drifts if drift.alarm]
    if alarms:
        raise CheckFailed("; ".join(alarms))


def _promised(paths: Sequence[Path]) -> Mapping[tuple[str, str], Promise]:
    for path in paths:
        read_evaluation(path)
    return promises(row for path in paths for row in read_rows(rows_path(path)))


def _before(paths: Sequence[Path], sources: Sources) -> list[Logged]:
    return Sources(tuple(paths), columns=sources.columns, written=sources.written).read(Account())[1]


def _tell(
    groups: Sequence[Group], drifts: Sequence[AnswerDrift], account: Account, level: float, margin: float
) -> None:  # fmt: skip
    if groups:
        title = f"right answers on the floor; a false alarm has a probability of {level:.0%} over all groups"
        table = new_table(title)
        for column in ("", "outcomes", "scenes", "right", "95% interval", f"promised, less {margin:.0%}", "p", ""):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for one in groups:
            table.add_row(
                Text(one.name), f"{one.n:,}", f"{one.scenes:,}", f"{one.accuracy:.1%}",
                f"{one.interval.low:.1%} to {one.interval.high:.1%}",
                "" if one.promised is None else f"{max(0.0, one.promised - margin):.1%}",
                "" if one.p is None else f"{one.p:.2g}", "alarm" if one.alarm else "",
            )  # fmt: skip
        show(table)
    if drifts:
        table = new_table(f"answers before and now; a false alarm has a probability of {level:.0%} over all groups")
        for column in ("", "n", "before", "now", "p", ""):
            table.add_column(column, justify="right" if column in ("n", "p") else "left")
        for test in drifts:
            shares = [", ".join(f"{text} {share:.0%}" for text, share in side) for side in (test.before, test.now)]
            table.add_row(
                Text(test.name), f"{test.n[0]:,} and {test.n[1]:,}", *map(Text, shares), f"{test.p:.2g}",
                "changed" if test.alarm else "",
            )  # fmt: skip
        show(table)
    if account.left_out:
        say(f"outcomes: {account.left_out.total():,} are left out: {account.told()}")
    for line in account.remarks:
        say(f"outcomes: {line}")
