"""Judgement of untrusted text: everything that judges an answer imports this part, and nothing else judges.

Pure functions on the standard library: no torch, no state, nothing that raises on any string or takes over 50 ms.
"""

from lineside.verify.judge import judge
from lineside.verify.parse import parse
from lineside.verify.traces import fact_share, trace_problem, trace_shares
from lineside.verify.verifiers import target_problem, verify

__all__ = ["fact_share", "judge", "parse", "target_problem", "trace_problem", "trace_shares", "verify"]
