"""Judgement of untrusted text. Every answer is judged here and nowhere else.

Pure functions that need only the standard library: no torch, no state. They raise on no string and take at most 50 ms.
"""

from lineside.verify.judge import judge
from lineside.verify.parse import parse
from lineside.verify.traces import fact_share, trace_problem, trace_shares
from lineside.verify.verifiers import target_problem, verify

__all__ = ["fact_share", "judge", "parse", "target_problem", "trace_problem", "trace_shares", "verify"]
