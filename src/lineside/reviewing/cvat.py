"""Questions and answers as CVAT's XML ("CVAT for images 1.1"), and back.

An image has one tag for each question; the label is `family/task`. Its attributes are the question, what others said,
our id, `by`, and `answer`, which is empty until somebody answers. The answer to a point is a point with that label.
Format: https://docs.cvat.ai/docs/dataset_management/formats/format-xml. Document types are refused, because entities
could make a small file large.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from lineside.data.review_list import ReviewQuestion
from lineside.data.values import read_number
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.images import decode
from lineside.progress import track
from lineside.reviewing.exchange import Answered, Finder, Found, People, read_whole
from lineside.reviewing.log import CANNOT_TELL, now
from lineside.reviewing.sources import Review

VIA = "cvat"
_SHAPES = ("box", "polygon", "polyline", "mask", "skeleton", "ellipse", "cuboid")


def write(path: Path, review: Review, people: People) -> None:
    """Write the questions and answers to `path`."""
    by_picture: dict[str, list[ReviewQuestion]] = {}
    for question in review.questions:
        by_picture.setdefault(question.picture, []).append(question)
    root = Xml.Element("annotations")
    _add(root, "version", "1.1")
    meta = Xml.SubElement(root, "meta")
    task = Xml.SubElement(meta, "task")
    _add(task, "name", review.path.resolve().name)
    _add(task, "size", str(len(by_picture)))
    _add(task, "mode", "annotation")
    labels = Xml.SubElement(task, "labels")
    for label, question in {q.task_name: q for q in review.questions}.items():
        _label(labels, label, question)
    _add(meta, "dumped", now())
    pictures = track(by_picture.items(), total=len(by_picture), unit="pictures", label="review: export")
    for number, (picture, questions) in enumerate(pictures):
        width, height = decode(review.picture(questions[0])).size
        about = {"id": str(number), "name": picture, "width": str(width), "height": str(height)}
        image = Xml.SubElement(root, "image", about)
        for question in questions:
            for name, answer in _answers(question, people):
                _shape(image, question, name, answer, (width, height))
    Xml.indent(root)
    write_atomic(path, Xml.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _add(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    Xml.SubElement(parent, tag, attributes).text = _printable(text)


def _printable(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(
        c if (c >= " " or c == "\n") and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff" else " "
        for c in text
    )


def _label(labels: Xml.Element, name: str, question: ReviewQuestion) -> None:
    label = Xml.SubElement(labels, "label")
    _add(label, "name", name)
    _add(label, "type", "any" if question.form.kind == "point" else "tag")
    attributes = Xml.SubElement(label, "attributes")
    options = question.form.options if question.form.kind == "choice" else ()
    for attribute in ("answer", "question", "said", "by", "id"):
        one = Xml.SubElement(attributes, "attribute")
        listed = attribute == "answer" and options
        _add(one, "name", attribute)
        _add(one, "mutable", "False")
        _add(one, "input_type", "select" if listed else "text")
        _add(one, "default_value", "")
        _add(one, "values", "\n".join(["", *options, CANNOT_TELL]) if listed else "")


def _answers(question: ReviewQuestion, people: People) -> list[tuple[str, str]]:
    """(person, answer) of everybody who answered; one without either if nobody did."""
    told = [(name, answers[question.id].told) for name, answers in people.items() if question.id in answers]
    return told or [("", "")]


def _shape(image: Xml.Element, question: ReviewQuestion, name: str, answer: str, size: tuple[int, int]) -> None:
    about = {"label": question.task_name, "source": "manual"}
    if question.form.kind == "point" and answer not in ("", CANNOT_TELL):
        x, y = (float(part) * side for part, side in zip(answer.split(","), size))
        about |= {"occluded": "0", "z_order": "0", "points": f"{x:.2f},{y:.2f}"}
        element, answer = Xml.SubElement(image, "points", about), ""
    else:
        element = Xml.SubElement(image, "tag", about)
    said = "; ".join(f"{one.by} {one.name}".strip() + f": {one.answer}" for one in question.said)
    told = {"answer": answer, "question": question.question, "said": said, "by": name, "id": question.id}
    for attribute, text in told.items():
        _add(element, "attribute", text, name=attribute)


class _Builder(Xml.TreeBuilder):
    """A tree builder that refuses document types."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """A document type may define entities."""
        raise LinesideError("it has a document type (<!DOCTYPE ...>), which CVAT does not write")


def read(path: Path, review: Review) -> Found:
    """The answers in an export of CVAT for images. Raises LinesideError for a file that is none."""
    try:
        root = Xml.fromstring(read_whole(path), Xml.XMLParser(target=_Builder()))
    except Xml.ParseError as error:
        raise LinesideError(f"{path}: not XML ({error}): expected the export 'CVAT for images 1.1'") from error
    except LinesideError as error:
        raise LinesideError(f"{path}: {error}" if not str(error).startswith(str(path)) else str(error)) from error
    version = (root.findtext("version") or "").strip()
    if root.tag != "annotations" or version != "1.1":
        raise LinesideError(
            f"{path}: the root is <{root.tag[:40]}> of version {version[:10] or 'none'}: expected <annotations> of "
            "version 1.1, the export 'CVAT for images 1.1'"
        )
    if root.find("track") is not None:
        raise LinesideError(f"{path}: it holds tracks: export the task as 'CVAT for images 1.1', not 'for video'")
    found, finder = Found(), Finder(review.every)
    for image in root.iter("image"):
        for element in image:
            _read_element(image, element, finder, found)
    return found


def _read_element(image: Xml.Element, element: Xml.Element, finder: Finder, found: Found) -> None:
    name, label = image.get("name", ""), element.get("label", "")
    where = f"image {name[:80]!r}, {element.tag} {label[:40]!r}"
    told = {a.get("name", ""): (a.text or "").strip() for a in element.iter("attribute")}
    try:
        if element.tag in _SHAPES:
            raise LinesideError("expected a tag, or a point")
        if element.tag not in ("tag", "points"):
            return
        question = finder.find(told.get("id"), name, task=label, text=told.get("question") or None)
        answer = told.get("answer", "")
        if element.tag == "points" and not answer:
            answer = _point(element.get("points", ""), image)
    except LinesideError as error:
        found.refused.append(f"{where}: {error}")
        return
    if answer:
        found.answers.append(Answered(question, told.get("by") or VIA, answer))
    else:
        found.empty += 1


def _point(text: str, image: Xml.Element) -> str:
    """One point in shares of the sides."""
    numbers = [read_number(part.strip()) for part in text.split(",")]
    sides = [read_number(image.get(name, "")) for name in ("width", "height")]
    shares = [value / side for value, side in zip(numbers, sides) if value is not None and side]
    if len(numbers) != 2 or len(shares) != 2:
        size = f"{image.get('width')} x {image.get('height')}"
        raise LinesideError(f"points {text[:40]!r} in a picture of {size}: expected one point in pixels")
    return ", ".join(f"{share:.3f}" for share in shares)
