"""Stage 2, sft: questions with traces, eight for each frame, against TRL's SFTTrainer.

    python benchmarks/sft_speed.py [--tiny]

A step is 4 frames of 49 image tokens, each with 8 questions of 12 tokens, traces of 30 and an answer: 32 examples.
Our side is `lineside.sft.sft`: it reads its shards, encodes new frames within the step, and packs trees. The peer is
SFTTrainer with its vision collator on the same 32 examples as rows, with the loss on the completion. Its loss gives
traces and answers the same weight, ours does not. The work is the same; the scores are compared by the plain mean.
"""

from __future__ import annotations

import ours
import trl_side
from common import Lengths, Options, Work, model_folder, options, sample_folder, samples, vocabulary
from race import race

FRAMES, QUESTIONS = 4, 8


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny)
    steps = settings.warmup + settings.repeats + 2
    data = samples("qa", FRAMES * steps, QUESTIONS, Lengths().shorter(settings.tiny), seed=settings.seed)
    work = Work(
        model,
        sample_folder("sft", data, tiny=settings.tiny),
        settings.device,
        dtype=settings.dtype,
        frames=FRAMES,
        vocabulary=vocabulary(settings.tiny),
        seed=settings.seed,
    )
    race(
        "sft, 8 questions a frame, 32 examples",
        "TRL SFTTrainer",
        ours.sft,
        trl_side.sft,
        work,
        settings,
        at_least=4.0,
        note=f"{source}, {settings.how}",
    )


if __name__ == "__main__":
    main(options(__doc__))
