"""Stage 1, align: captions of one frame, against TRL's SFTTrainer with encoder and LM frozen.

    python benchmarks/align_speed.py [--tiny]

A step is 32 captions of 30 tokens under 49 image tokens: 32 frames with one caption each, or 8 frames with four. Our
side is `lineside.align.align` with the frames' features in the store, as in every pass after the first. In the row
"first pass" it encodes within the step; this row makes no claim. The peer has no store and encodes in every step. On
both sides encoder and LM are frozen, and the loss is the mean over caption tokens.
"""

from __future__ import annotations

import ours
import trl_side
from common import Lengths, Options, Work, model_folder, options, sample_folder, samples, vocabulary
from race import race

CAPTIONS = 32  # in a step


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny)
    for each, stored, at_least in ((1, True, 2.0), (4, True, 4.0), (1, False, None)):
        steps = 1 if stored else settings.warmup + settings.repeats + 2
        data = samples("caption", steps * CAPTIONS // each, each, Lengths().shorter(settings.tiny), seed=settings.seed)
        work = Work(
            model,
            sample_folder("align", data, tiny=settings.tiny),
            settings.device,
            dtype=settings.dtype,
            frames=CAPTIONS // each,
            stored=stored,
            vocabulary=vocabulary(settings.tiny),
            seed=settings.seed,
        )
        race(
            f"align, {each} caption{'s' if each > 1 else ''} a frame, 32 captions{'' if stored else ', first pass'}",
            "TRL SFTTrainer",
            ours.align,
            trl_side.align,
            work,
            settings,
            at_least=at_least,
            note=f"{source}, {settings.how}",
        )


if __name__ == "__main__":
    main(options(__doc__))
