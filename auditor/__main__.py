"""``python -m nnaudit`` is ``nnaudit``."""

from nnaudit.cli import main

main(prog_name="nnaudit")
