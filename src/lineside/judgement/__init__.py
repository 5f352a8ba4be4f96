"""Judgement (DESIGN 8): statistics by scene, baselines, caption matching, the evaluation object and its page."""
