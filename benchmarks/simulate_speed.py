"""Frames a second on one core: physics, ground truth, picture and JPEG, in CPU time of this process.

Claim: at least 15 frames/s on a core at 224x224. Each frame is made `--repeats` times. "best" is the fastest of them:
the speed of the machine without other users. "mean" is the mean of all. The time to make the context is left out.

    python benchmarks/simulate_speed.py
"""

from __future__ import annotations

import argparse
import time

from lineside.sim.world import FAMILIES, generate_frames


def main() -> None:
    parser = argparse.ArgumentParser(description="Frames a second on one core.")
    parser.add_argument("--frames", type=int, default=30, help="of each family")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seed", type=int, default=9)
    options = parser.parse_args()
    seconds = 0.0
    for family in FAMILIES:
        wanted = {"family": family, "seed": options.seed, "split": "train"}
        list(generate_frames(count=options.frames, **wanted))  # warm-up: textures are drawn and uploaded
        best, total = 0.0, 0.0
        for start in range(options.frames):
            times = []
            for _ in range(options.repeats):
                begin = time.process_time()
                (frame,) = generate_frames(count=1, start=start, **wanted)
                times.append(time.process_time() - begin)
            best, total = best + min(times), total + sum(times)
        seconds += best / options.frames
        mean = options.frames * options.repeats / total
        print(f"{family}: best {options.frames / best:.1f}, mean {mean:.1f} frames/s ({frame.meta.extra['renderer']})")
    print(f"all families alike: best {len(FAMILIES) / seconds:.1f} frames/s")


if __name__ == "__main__":
    main()
