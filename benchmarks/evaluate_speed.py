"""Evaluation of a suite: 16 frames, 8 questions each, greedy, against transformers' generate at its best batch size.

    python benchmarks/evaluate_speed.py [--tiny]

Questions of 12 tokens under 49 image tokens, answers of 32 tokens (eos is suppressed). The time is from pictures to
responses, the main part of `lineside evaluate`; judging and tables are left out, because the peer has none. The peer
tries 8 to 128 rows at once in a step that does not count and keeps the fastest.
"""

from __future__ import annotations

from common import Lengths, Options, model_folder, options, sample_folder, samples, vocabulary
from generating import Answering, our_side, transformers_side
from race import race

FRAMES, QUESTIONS = 16, 8


def main(settings: Options) -> None:
    model, source = model_folder(49, tiny=settings.tiny)
    steps = settings.warmup + settings.repeats + 2
    frames = 4 if settings.tiny else FRAMES
    data = samples("prompt", frames * steps, QUESTIONS, Lengths().shorter(settings.tiny), seed=settings.seed)
    work = Answering(
        model,
        sample_folder("evaluate", data, tiny=settings.tiny),
        settings.device,
        dtype=settings.dtype,
        frames=frames,
        new_tokens=6 if settings.tiny else 32,
        vocabulary=vocabulary(settings.tiny),
        seed=settings.seed,
        questions=QUESTIONS,
    )
    race(
        f"evaluation, {frames} frames x {QUESTIONS} questions, greedy",
        "transformers generate",
        our_side,
        transformers_side,
        work,
        settings,
        at_least=3.0,
        note=f"{source}, {settings.how}",
    )


if __name__ == "__main__":
    main(options(__doc__))
