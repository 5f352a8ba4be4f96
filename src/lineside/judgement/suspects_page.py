"""The suspect records for people and programs: account, page, and the questions of a review list."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lineside.data.review_list import Form, ReviewQuestion, Said
from lineside.images import jpeg_uri, thumbnail
from lineside.judgement.console import certainty, new_table, percent
from lineside.judgement.html import fill_template
from lineside.judgement.suspects import Found, Suspect, expected_wrong

HEADS = "classifier heads"
CARDS = 120  # pictures on the page
VALUES = 20  # of a source on the page and the console; the account has all
PICTURE = 260  # pixels


def account(found: Found, *, cut: float, judges: str, left_out: Mapping[str, int]) -> dict[str, Any]:
    """The result as plain data. The values of a source are sorted by their estimated number of wrong records."""
    flagged = found.above(cut)
    by_value = Counter((source, value) for s in flagged for source, value in s.record.sources.items())
    sources: dict[str, list[dict[str, Any]]] = {}
    for source, values in found.by_source.items():
        rows = [
            {
                "value": value,
                "n": n,
                "wrong": round(n * estimate.share, 1),
                "interval": [round(n * bound, 1) for bound in estimate.interval],
                "share": round(estimate.share, 4),
                "flagged": by_value[source, value],
            }
            for value, (n, estimate) in values.items()
        ]
        sources[source] = sorted(rows, key=lambda row: (-row["wrong"], row["value"]))
    return {
        "judges": judges,
        "records": len(found.suspects),
        "cut": cut,
        "flagged": len(flagged),
        "expected_wrong": round(expected_wrong(flagged), 1),
        "by_source": sources,
        "left_out": {**left_out, **found.left_out},
    }


def by_frame(suspects: Sequence[Suspect]) -> dict[str, list[Suspect]]:
    """The suspects of each picture, by its key, in their order."""
    found: dict[str, list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        found[suspect.record.picture].append(suspect)
    return found


def review_question(suspect: Suspect, model: str) -> ReviewQuestion:
    """The question of a suspect for a person; `model` names the model whose answers are shown."""
    record = suspect.record
    said = [Said(by="record", answer=record.answer)]
    if record.said:
        said.append(Said(by="teacher", answer=record.said))
    for name, opinion in ((HEADS, suspect.heads), (model, suspect.model)):
        if opinion is not None and opinion.answer:
            said.append(Said(by="model", name=name, answer=opinion.answer, confidence=opinion.confidence))
    return ReviewQuestion(
        id=record.id,
        frame=record.frame,
        picture="",
        family=record.family,
        task=record.name,
        key=record.key,
        question=record.question,
        form=Form.of_target(record.target),
        said=tuple(said),
        scene=record.scene,
        why=f"the record is wrong with a probability of {certainty(suspect.wrong)}",
    )


def render(account: Mapping[str, Any], flagged: Sequence[Suspect], pictures: Mapping[str, bytes], name: str) -> str:
    """The page. `pictures`: bytes of pictures by key; those that it shows and that are missing are left out."""
    groups = by_frame(flagged)
    cards = [
        {"suspects": group, "picture": _uri(pictures.get(key), key)} for key, group in list(groups.items())[:CARDS]
    ]
    return fill_template(
        "suspects.html.j2",
        name=name,
        account=account,
        cards=cards,
        left=len(groups) - len(cards),
        most=VALUES,
    )


def _uri(data: bytes | None, name: str) -> str:
    return "" if data is None else jpeg_uri(thumbnail(data, name=name, side=PICTURE))


def table(account: Mapping[str, Any]) -> Table:
    """The estimates by source for a terminal."""
    title = (
        f"{account['flagged']:,} of {account['records']:,} records to look at: wrong with a probability of "
        f"{percent(account['cut'])} or more"
    )
    shown = new_table(title)
    shown.add_column("source")
    shown.add_column("")
    for column in ("records", "wrong, estimated", "95% interval", "share", "to look at"):
        shown.add_column(column, justify="right", no_wrap=True)
    for source, rows in account["by_source"].items():
        for row in rows[:VALUES]:
            low, high = row["interval"]
            shown.add_row(
                Text(source),
                Text(row["value"]),
                f"{row['n']:,}",
                f"{row['wrong']:,.0f}",
                f"{low:,.0f} to {high:,.0f}",
                percent(row["share"]),
                f"{row['flagged']:,}",
            )
    return shown
