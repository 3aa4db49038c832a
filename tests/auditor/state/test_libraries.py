"""Programs that are executed a second time while the first is paused."""

from __future__ import annotations

import pytest

from nnaudit.state.libraries import beginning_anew


def test_hydra_is_unused_within_and_as_it_was_after() -> None:
    pytest.importorskip("hydra")
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra

    with initialize(version_base=None):
        paused = GlobalHydra.instance().hydra
        with beginning_anew():
            assert not GlobalHydra.instance().is_initialized()
            with initialize(version_base=None):
                pass
        assert GlobalHydra.instance().hydra is paused


def test_a_name_may_be_taken_again_within_and_not_after() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    register = omegaconf.OmegaConf.register_new_resolver
    register("nnaudit_twice", lambda x: 2 * x)
    try:
        with beginning_anew():
            omegaconf.OmegaConf.register_new_resolver("nnaudit_twice", lambda x: 3 * x)
        made = omegaconf.OmegaConf.create({"a": "${nnaudit_twice:2}"})
        assert made.a == 6
        with pytest.raises(ValueError, match="already registered"):
            register("nnaudit_twice", lambda x: x)
    finally:
        omegaconf.OmegaConf.clear_resolver("nnaudit_twice")
