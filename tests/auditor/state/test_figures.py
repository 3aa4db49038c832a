"""Figures of programs that want a window."""

from __future__ import annotations

import sys

import pytest

from nnaudit.state.figures import never_shown

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("imported", [True, False])
def test_who_asks_for_a_window_draws_without_one(
    imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    asked = plt.switch_backend
    chosen = matplotlib.get_backend()
    if not imported:
        monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    finders = list(sys.meta_path)
    try:
        with never_shown():
            matplotlib.use("TkAgg")
            import matplotlib.pyplot as shown

            figure = shown.figure()
            assert type(figure.canvas).__name__ == "FigureCanvasAgg"
            shown.show()
            shown.switch_backend("svg")
            assert type(shown.figure().canvas).__name__ == "FigureCanvasSVG"
            shown.close("all")
        assert shown.switch_backend.__module__ == "matplotlib.pyplot"
        assert plt.switch_backend is asked
        assert sys.meta_path == finders
    finally:
        matplotlib.use(chosen)
