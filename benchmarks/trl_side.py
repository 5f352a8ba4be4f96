"""TRL's side, set up as by an experienced user: weights in the number format of our side, the tower frozen, no gradient
checkpointing, no logging, no saving. It loads the same LLaVA folder, through transformers alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lineside.machine import lacking

try:
    import datasets  # noqa: F401
    import trl  # noqa: F401
except ModuleNotFoundError:
    raise SystemExit(str(lacking("trl", "the comparison with TRL"))) from None
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from common import Work
from lineside.data.store import read_samples
from lineside.model.render import CAPTION_PROMPT, ChatFormat
from lineside.runtime import DTYPES
from lineside.types import Sample
from race import Score, Turn, gradients, in_float32

PLAIN: dict[str, Any] = {
    "learning_rate": 1e-6,
    "max_steps": 100_000,
    "bf16": False,  # the weights have their number format already: autocast would only add conversions
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


def ready(work: Work) -> tuple[Any, Any]:
    """Model and processor."""
    model = LlavaForConditionalGeneration.from_pretrained(work.model, dtype=DTYPES[work.dtype]).to(work.device)  # pyright: ignore[reportArgumentType]
    model.model.vision_tower.requires_grad_(False)
    return model, AutoProcessor.from_pretrained(work.model)


class Stepper(TrainerCallback):
    """Ends the turn after every optimiser step."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.turn.done()


def rows(folder: Path, processor: Any) -> Dataset:
    """Samples as prompt, completion and picture, with exactly the text of our renderer."""
    form = ChatFormat.of(processor.tokenizer)

    def row(sample: Sample) -> dict[str, Any]:
        caption = sample.kind == "caption"
        question = CAPTION_PROMPT if caption else sample.question
        trace = "" if caption else f"<think>{sample.trace}</think>"
        return {
            "prompt": f"{form.user_open}<image>{question}{form.user_close}{'<think></think>' if caption else ''}",
            "completion": f"{trace}{sample.answer}{form.eos}",
            "image": {"bytes": sample.images[0].bytes, "path": None},
        }

    features = Features({"prompt": Value("string"), "completion": Value("string"), "image": ImageFeature()})
    return Dataset.from_list([row(sample) for sample in read_samples(folder)], features=features)


def sft(work: Work, turn: Turn) -> None:
    """SFTTrainer on projector and LM."""
    _sft(work, turn, freeze=False)


def align(work: Work, turn: Turn) -> None:
    """SFTTrainer on the projector alone."""
    _sft(work, turn, freeze=True)


def _sft(work: Work, turn: Turn, *, freeze: bool) -> None:
    model, processor = ready(work)
    if freeze:
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    data = rows(work.samples, processor)
    each = len(data) // len({s.meta.scene for s in read_samples(work.samples)})
    step_rows = work.frames * each
    micro = min(work.peer_rows, step_rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=step_rows // micro,
                max_length=None,
                use_cpu=work.device == "cpu",
                **PLAIN,
            ),
            train_dataset=data,
            processing_class=processor,
            callbacks=[Stepper(turn)],
        )
        turn.scored(_score(trainer, data, each * (4 if freeze else 1)))
        trainer.train()


def _score(trainer: SFTTrainer, data: Dataset, count: int) -> Score:
    """The trainer's own collator and forward on the first rows."""
    model: Any = trainer.model
    batch = trainer.data_collator([data[i] for i in range(count)])
    batch = {name: value.to(model.device) for name, value in batch.items()}
    with in_float32(model):
        batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        out = model.train()(**batch, fused_lm_head=True)
        logprobs = out.log_probs[out.label_mask]
        (-logprobs.mean()).backward()
        found = gradients(model)
    labels = batch["labels"]
    return Score(labels[labels != -100].cpu(), logprobs.detach().float().cpu(), found)
