from types import SimpleNamespace

from vllm import FAULT

current_platform = SimpleNamespace(is_cpu=lambda: FAULT == "cpu")
