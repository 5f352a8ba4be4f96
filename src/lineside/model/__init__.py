"""The model: parts, rendering, frozen features, trees, generation, checkpoints. It never imports data/ or sim/."""
