"""Rollouts: 4 prompts x 8 samples x 32 new tokens at temperature 1, against transformers' generate.

    python benchmarks/rollout_speed.py [--tiny]

Prompts of 24 tokens under 49 image tokens. Pictures are decoded and encoded within the step on both sides. Our side is
the generator of rollouts, evaluation and server; the peer generates all 32 rows at once.
"""

from __future__ import annotations

from common import Lengths, Options, model_folder, options, sample_folder, samples, vocabulary
from generating import Answering, our_side, transformers_side
from race import race

PROMPTS, GROUP = 4, 8


def rollouts(settings: Options) -> tuple[Answering, str]:
    """The work, and the name of its model."""
    model, source = model_folder(49, tiny=settings.tiny)
    steps = settings.warmup + settings.repeats + 2
    lengths = Lengths(question=24).shorter(settings.tiny)
    work = Answering(
        model,
        sample_folder(
            "rollout", samples("prompt", PROMPTS * steps, 1, lengths, seed=settings.seed), tiny=settings.tiny
        ),
        settings.device,
        dtype=settings.dtype,
        frames=PROMPTS,
        new_tokens=6 if settings.tiny else 32,
        vocabulary=vocabulary(settings.tiny),
        seed=settings.seed,
        samples_each=GROUP,
        temperature=1.0,
    )
    return work, f"{source}, {settings.how}"


def main(settings: Options) -> None:
    work, note = rollouts(settings)
    race(
        f"rollouts, {PROMPTS} x {GROUP} x {work.new_tokens}",
        "transformers generate",
        our_side,
        transformers_side,
        work,
        settings,
        at_least=3.0,
        note=note,
    )


if __name__ == "__main__":
    main(options(__doc__))
