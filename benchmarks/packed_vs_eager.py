"""Packed log-probs against plain, unpacked Hugging Face eager runs, one document at a time.

    python -m benchmarks.packed_vs_eager [--out results.json]

Tiny random float32 models with windows of 8 tokens, grouped heads and small soft caps. For each architecture and
layout: the largest absolute difference of a log-prob (nats), and the largest difference of a weight's gradient,
relative to that gradient's norm. The same numbers are bounded by 1e-5 in tests/modeling/test_logps.py.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from tests.modeling.models import ARCHITECTURES, LAYOUTS, eager_twin, make_groups, packed_model, plain_logps
from tests.modeling.test_logps import weighted_gradients
from tests.reference.packing import pack_groups


def measure(name: str, layout: str) -> dict[str, object]:
    model, groups = packed_model(name), make_groups()
    twin = eager_twin(model.causal)
    logps, expected = model(pack_groups(groups, layout).to()), plain_logps(twin, groups)
    ours, theirs = weighted_gradients(model.causal, logps), weighted_gradients(twin, expected)
    return {
        "architecture": name,
        "layout": layout,
        "logps_max_abs": (logps - expected).abs().max().item(),
        "gradients_max_rel": max(((ours[k] - theirs[k]).norm() / theirs[k].norm()).item() for k in ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table as JSON too")
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    rows = [measure(name, layout) for name in ARCHITECTURES for layout in LAYOUTS]
    print("| architecture | layout | log-probs, max abs difference | gradients, max relative difference |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['architecture']} | {row['layout']} | {row['logps_max_abs']:.1e} | {row['gradients_max_rel']:.1e} |"
        )
    if out:
        out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
