"""Driving an unmodified training script. Start with :func:`run_script`."""

from nnaudit.loop.script.launch import run_script
from nnaudit.loop.script.loop import ScriptLoop

__all__ = ["ScriptLoop", "run_script"]
