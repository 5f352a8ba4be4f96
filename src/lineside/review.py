"""review: a person answers and corrects by keyboard, on a page of this machine.

Questions come from a list (`data.review_list`), a folder of photographs with a task file, samples, or the wrong answers
of an evaluation. Each person has a log of their own in the folder of the review; every answer is on the disk before the
page goes on, and the same command continues. Two people may work at the same time, one person in one process. Their
answers become records that `label` reads, are compared by task (share and Cohen's kappa), and go to and come from
Label Studio and CVAT. Left out: drawing boxes and masks; a point is a disc.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal

from lineside.errors import LinesideError, TooLittleData
from lineside.files import hold
from lineside.progress import say
from lineside.reviewing import cvat, label_studio
from lineside.reviewing.agreement import agreements, lines
from lineside.reviewing.exchange import SHOWN, keep
from lineside.reviewing.log import FOLDER, Log, person_name, read_people
from lineside.reviewing.records import Account, write_records
from lineside.reviewing.server import Server
from lineside.reviewing.session import Session
from lineside.reviewing.sources import Review


def serve(review: Review, *, person: str, blind: bool = False, port: int = 0) -> None:
    """Serve the page until the person finishes or Ctrl-C, then write the records if they can be written.

    Raises LinesideError when this person has the review open already, or the port is taken.
    """
    name = person_name(person)
    logs = review.folder / FOLDER
    with (
        _alone(logs, name),
        closing(Log(logs / f"{name}.jsonl")) as log,
        Server(Session(review, log, name, blind=blind), port) as server,
    ):
        say(f"review: {len(review.questions):,} questions for {name}; open this address, and end with Ctrl-C here:")
        print(server.address, flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("review: ended; every answer is kept, and the same command continues")
    people = read_people(review.folder, review.every)
    if people and review.tasks is not None and review.frames is not None:
        try:
            records(review)
        except LinesideError as error:
            say(f"review: {error}")


@contextmanager
def _alone(logs: Path, name: str) -> Iterator[None]:
    """Keep a second process of the same person out."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(logs, name=f".{name}.lock"))
        except LinesideError as error:
            raise LinesideError(f"{error}; somebody else gives --person NAME and works at the same time") from error
        yield


def records(review: Review) -> None:
    """Write the records and say what they hold. Raises LinesideError as `write_records`."""
    path, account = write_records(review, read_people(review.folder, review.every))
    for line in told(account):
        say(f"review: {line}")
    say(f"review: records are in {path}: lineside label {path} SAMPLES --tasks FILE")


def told(account: Account) -> list[str]:
    """What became of the settled questions, for the console."""
    counts = {
        "agree with the record": account.confirmed,
        "correct it": account.corrected,
        "are new": account.new,
        "are unknown now because people cannot tell": account.untold,
        "are unknown now because people disagree (one more person settles them)": account.contested,
        "are not written because the table has no such frame or asks it no such question (any more)": account.unplaced,
    }
    found = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    unread = [f"{account.unread:,} rows of the table cannot be read and are left out"] if account.unread else []
    return [f"settled answers: {found}", *unread]


def agreement(review: Review, *, as_json: bool = False) -> None:
    """Print how far people agree with each other, and with record, teacher and model, by task.

    Raises TooLittleData when no two people have answered a common question.
    """
    people = read_people(review.folder, review.questions)
    found = agreements(review.questions, people)
    if as_json:
        print(json.dumps({"agreements": [one.to_json() for one in found]}, indent=2, ensure_ascii=False))
    elif found:
        print("\n".join(lines(found)))
    if not any({one.first, one.second} <= people.keys() for one in found):
        who = ", ".join(people) or "nobody"
        raise TooLittleData(
            f"{review.folder}: {who} answered: two people must answer common questions: "
            f"lineside review {review.path} --person NAME --blind"
        )


def export(review: Review, tool: Literal["label-studio", "cvat"], path: Path) -> None:
    """Write the questions, with what was said and answered, for another tool. Raises LinesideError if it cannot."""
    suffix = ".xml" if tool == "cvat" else ".json"
    if path.suffix.lower() != suffix:
        raise LinesideError(f"{path}: a file for {tool} ends with {suffix}")
    people = read_people(review.folder, review.questions)
    if tool == "cvat":
        cvat.write(path, review, people)
    else:
        say(f"review: the project's labelling interface is in {label_studio.write(path, review, people)}")
    say(f"review: {len(review.questions):,} questions are in {path}; their pictures lie in {review.pictures}")


def read_file(review: Review, path: Path, *, person: str | None = None) -> None:
    """Read the answers in a file of Label Studio (JSON) or CVAT (XML) into the logs of their people.

    `person`: whose answers they all are. Raises LinesideError for a file that is neither, or without any answer to
    these questions.
    """
    is_xml = path.suffix.lower() == ".xml"
    if not is_xml and path.suffix.lower() != ".json":
        raise LinesideError(f"{path}: expected .json (Label Studio) or .xml (CVAT for images 1.1)")
    found = cvat.read(path, review) if is_xml else label_studio.read(path, review)
    counts = keep(review, found, person=person, via=cvat.VIA if is_xml else label_studio.VIA)
    for why in found.refused[:SHOWN]:
        say(f"review: refused: {why}")
    if len(found.refused) > SHOWN:
        say(f"review: ... and {len(found.refused) - SHOWN:,} more are refused")
    if not counts["new"] and not counts["same"]:
        raise LinesideError(f"{path}: no answer to these questions ({found.empty:,} entries without one)")
    say(
        f"review: {counts['new']:,} answers read, {counts['same']:,} were known, {counts['refused']:,} refused, "
        f"{found.empty:,} entries without an answer"
    )
