"""Driving an unmodified training script. Start with :func:`run_script`."""

from nnaudit.loop.script.loop import ScriptLoop, run_script

__all__ = ["ScriptLoop", "run_script"]
