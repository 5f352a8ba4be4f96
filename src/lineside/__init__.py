"""lineside: align, sft and rlvr for the compact vision-language models of robot cells.

Importing this package loads no torch; `lineside.model` does.
"""

__version__ = "0.1.0"
