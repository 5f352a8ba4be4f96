"""Questions and answers as Label Studio's JSON (tasks with annotations and predictions), and back.

One task is one question. `data` holds the picture's name, the question and our id; people's answers are annotations,
what record, teacher and model said are predictions. The labelling interface (`<name>.interface.xml`, for the settings
of the project) has a control for each kind of answer that occurs, and `flag` for "cannot tell". Format:
https://labelstud.io/guide/task_format. A point is a key point in percent of the picture's sides. Who answered stands in
`meta.text` of a result, because Label Studio refuses a `completed_by` that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lineside.data.review_list import ReviewQuestion, WrongForm
from lineside.data.tabular import read_json
from lineside.data.values import decimal_text
from lineside.errors import LinesideError
from lineside.files import write_atomic
from lineside.images import decode
from lineside.progress import track
from lineside.reviewing.exchange import Answered, Finder, Found, People, read_whole
from lineside.reviewing.log import CANNOT_TELL
from lineside.reviewing.sources import Review

VIA = "label-studio"
_CONTROLS = {"exact": "text", "choice": "choice", "set": "members", "number": "number", "point": "point"}
_TAGS = {
    "text": '<TextArea name="text" toName="image" maxSubmissions="1" rows="1"/>',
    "choice": '<Choices name="choice" toName="image" value="$options" choice="single"/>',
    "members": '<Choices name="members" toName="image" value="$options" choice="multiple"/>',
    "number": '<Number name="number" toName="image"/>',
    "point": '<KeyPointLabels name="point" toName="image"><Label value="point"/></KeyPointLabels>',
}


def write(path: Path, review: Review, people: People) -> Path:
    """Write tasks to `path`, and the labelling interface beside it; returns the path of the latter."""
    asked = track(review.questions, total=len(review.questions), unit="questions", label="review: export")
    tasks = [_task(number, question, review, people) for number, question in enumerate(asked, 1)]
    write_atomic(path, json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    used = dict.fromkeys(_control(question) for question in review.questions)
    interface = path.with_suffix(".interface.xml")
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>', '  <Header value="$question"/>']
    lines += [f"  {_TAGS[name]}" for name in used]
    # Beside other choices Label Studio refuses a list with one <Choice>, so the flag comes from the task too.
    flag = '<Choices name="flag" toName="image" value="$flags"/>'
    write_atomic(interface, "\n".join([*lines, f"  {flag}", "</View>", ""]))
    return interface


def _control(question: ReviewQuestion) -> str:
    """A list of counted things and a choice without options are typed."""
    form = question.form
    return "text" if form.counted or (form.kind in ("choice", "set") and not form.options) else _CONTROLS[form.kind]


def _task(number: int, question: ReviewQuestion, review: Review, people: People) -> dict[str, Any]:
    size = decode(review.picture(question)).size if question.form.kind == "point" else (0, 0)
    annotations = []
    for name, entries in people.items():
        if (entry := entries.get(question.id)) is not None:
            about = {"id": f"a{number}-{len(annotations)}", "meta": {"text": [name]}}
            result = [{**_result(question, entry.told, size), **about}]
            annotations.append({"result": result, "was_cancelled": False, "created_at": entry.at})
    predictions = []
    for said in question.said:
        try:
            text = question.form.read(said.answer)[0]
        except WrongForm:
            continue  # a model's answer that the interface cannot show
        result = [{**_result(question, text, size), "id": f"p{number}-{len(predictions)}"}]
        score = {} if said.confidence is None else {"score": said.confidence}
        predictions.append({"model_version": f"{said.by} {said.name}".strip(), "result": result, **score})
    data = {
        "image": f"/data/local-files/?d={quote(question.picture)}",
        "question": question.question,
        "options": [{"value": option} for option in question.form.options],
        "flags": [{"value": CANNOT_TELL}],
        "task": question.task_name,
        "frame": question.frame,
        "why": question.why,
        "lineside_id": question.id,
    }
    return {"id": number, "data": data, "annotations": annotations, "predictions": predictions}


def _result(question: ReviewQuestion, text: str, size: tuple[int, int]) -> dict[str, Any]:
    name = "flag" if text == CANNOT_TELL else _control(question)
    plain: dict[str, Any] = {"from_name": name, "to_name": "image"}
    if name in ("flag", "choice"):
        return {**plain, "type": "choices", "value": {"choices": [text]}}
    if name == "members":
        chosen = [] if text == "none" else [member.strip() for member in text.split(",")]
        return {**plain, "type": "choices", "value": {"choices": chosen}}
    if name == "number":
        return {**plain, "type": "number", "value": {"number": question.form.read(text)[1].value}}
    if name == "point":
        x, y = (100 * float(part) for part in text.split(","))
        about = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
        value = {"x": round(x, 4), "y": round(y, 4), "width": 0.5, "keypointlabels": ["point"]}
        return {**plain, **about, "type": "keypointlabels", "value": value}
    return {**plain, "type": "textarea", "value": {"text": [text]}}


def read(path: Path, review: Review) -> Found:
    """The answers in an export of Label Studio (JSON). Raises LinesideError for a file that is none."""
    try:
        data = read_json(read_whole(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise LinesideError(f"{path}: not JSON ({error}): expected Label Studio's export as JSON") from error
    tasks = [data] if isinstance(data, dict) else data
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks):
        raise LinesideError(
            f"{path}: expected Label Studio's export as JSON: a list of tasks with `data` and `annotations` (not "
            "JSON-MIN, CSV or COCO)"
        )
    found, finder = Found(), Finder(review.every)
    for number, task in enumerate(tasks, 1):
        _read_task(task, f"task {task.get('id', number)}", finder, found)
    return found


def _read_task(task: Mapping[str, Any], where: str, finder: Finder, found: Found) -> None:
    data, annotations = task["data"], task.get("annotations")
    if not annotations:
        found.empty += 1
        return
    try:
        if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
            raise LinesideError("`annotations` is not a list of annotations")
        image = next((v for v in (data.get("image"), *data.values()) if isinstance(v, str)), "")
        told = {key: value for key, value in data.items() if isinstance(value, str)}
        question = finder.find(told.get("lineside_id"), image, task=told.get("task"), text=told.get("question"))
    except LinesideError as error:
        found.refused.append(f"{where}: {error}")
        return
    for annotation in annotations:
        if annotation.get("was_cancelled") is True:
            found.empty += 1
            continue
        try:
            text = _answer(question, annotation.get("result"))
        except LinesideError as error:
            found.refused.append(f"{where}: {error}")
            continue
        at = next((a for a in (annotation.get("updated_at"), annotation.get("created_at")) if isinstance(a, str)), "")
        found.answers.append(Answered(question, _person(annotation), text, at[:40]))


def _answer(question: ReviewQuestion, results: Any) -> str:
    """The answer of one annotation as text. Raises LinesideError for results that are none."""
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        raise LinesideError("`result` is not a list of results")
    flagged = [r for r in results if r.get("from_name") == "flag"]
    texts = [text for result in results if result not in flagged for text in _texts(result)]
    if flagged:
        return CANNOT_TELL
    if question.form.kind == "set":
        return ", ".join(texts) or "none"
    if len(texts) != 1:
        raise LinesideError(f"{len(texts)} answers to one question: expected {question.form.expected()}")
    return texts[0]


def _texts(result: Mapping[str, Any]) -> Iterator[str]:
    kind, value = result.get("type"), result.get("value")
    value = value if isinstance(value, dict) else {}
    if kind in ("choices", "textarea"):
        told = value.get("choices" if kind == "choices" else "text")
        told = [told] if isinstance(told, str) else told
        if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
            raise LinesideError(f"a result of type {kind} without texts")
        yield from (text.strip() for text in told)
    elif kind in ("number", "rating") and _is_number(value.get(kind)):
        yield decimal_text(value[kind])
    elif kind in ("keypoint", "keypointlabels") and _is_number(value.get("x")) and _is_number(value.get("y")):
        yield f"{value['x'] / 100:.3f}, {value['y'] / 100:.3f}"
    else:
        raise LinesideError(f"a result of type {str(kind)[:40]!r}: expected choices, textarea, number or key points")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _person(annotation: Mapping[str, Any]) -> str:
    """Who answered: the e-mail's name, else the note that our own export made, else the user's number."""
    by = annotation.get("completed_by")
    if isinstance(by, dict) and isinstance(by.get("email"), str):
        return by["email"].partition("@")[0]
    for result in annotation.get("result") or ():
        text = (result.get("meta") or {}).get("text") if isinstance(result.get("meta"), dict) else None
        if isinstance(text, list) and text and isinstance(text[0], str):
            return text[0]
    number = by.get("id") if isinstance(by, dict) else by
    return f"label-studio-{number}" if isinstance(number, int) else "label-studio"
