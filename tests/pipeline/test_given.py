from __future__ import annotations

import pytest

from pyprefopt.pipeline.preflight import log_reward_strength
from pyprefopt.settings.resolve import configure


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 0.5}, "loss.alpha * rewards.beta = 0.2 * 0.5 = 0.1; only"),
        ({"name": "simpo"}, "loss.alpha * rewards.beta = 0.2 * 2.5 = 0.5; only"),
        ({"name": "column"}, "loss.alpha * rewards.beta = 0.2 * 1 = 0.2; only"),
        ({"name": "contrastive"}, "loss.alpha = 0.2; rewards.beta = 1 is inside the sigmoid"),
    ],
)
def test_the_number_that_decides_is_told(caplog, settings, said):
    """The provider's own scale where none is given."""
    caplog.set_level("INFO", "pyprefopt")
    log_reward_strength(configure(model="m", data="d", method="tgdpo", loss={"alpha": 0.2}, rewards=settings))
    (record,) = caplog.records
    assert said in record.getMessage()


def test_methods_without_a_factor_tell_nothing(caplog):
    caplog.set_level("INFO", "pyprefopt")
    log_reward_strength(configure(model="m", data="d", method="dpo-reg"))
    assert not caplog.records
