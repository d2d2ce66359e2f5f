from __future__ import annotations

import pytest

from pyprefopt.stages.run import say_strength
from pyprefopt.train.resolve import configure

GUIDED = {"method": "tgdpo", "loss": {"alpha": 0.2}, "rewards": {"beta": 0.5}}


@pytest.mark.parametrize(("settings", "said"), [(GUIDED, ["0.2 * 0.5 = 0.1"]), ({"method": "dpo-reg"}, [])])
def test_the_product_that_decides_is_told(caplog, settings, said):
    caplog.set_level("INFO", "pyprefopt")
    say_strength(configure(model="m", **settings))
    assert [record.getMessage().split("rewards.beta = ")[1].split(";")[0] for record in caplog.records] == said
