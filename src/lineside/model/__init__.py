"""The model: parts, rendering, frozen features, trees, generation, checkpoints. Never imports data/, train/ or sim/."""
