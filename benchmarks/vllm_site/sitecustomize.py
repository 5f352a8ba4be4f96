"""Run at the start of every Python of vLLM's environment, its subprocesses too (vllm_speed.py puts it on the path).

The registry's torchvision is built for CUDA. Beside a CPU torch its compiled operators do not load, and its import
fails because it describes them; vLLM's LLaVA imports it and never calls them. Declared here, they can be described.
"""

import torch

library = torch.library.Library("torchvision", "DEF")  # kept: gone, it would take its operators along
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
