"""``python -m nnaudit`` is ``nnaudit``."""

from nnaudit.app.cli import main

main(prog_name="nnaudit")
