"""The results of `benchmarks/train.py` as Markdown tables and as docs/training-speed.md."""

from __future__ import annotations

from typing import Any

from benchmarks.pairs import Shape
from benchmarks.report import markdown, mb

Run = dict[str, Any]
SIDES = {
    "trl 4": "TRL's `DPOTrainer`, batches of 4 padded",
    "trl 1": "TRL's `DPOTrainer`, micro-batch 1",
    "separate": "DPO, packed, `--layout separate`",
    "shared": "DPO, packed, `--layout shared`",
    "sepo": "SePO on 30 % of the tokens, shared",
}
TITLES = {
    "small": "The main setting",
    "heavy": "A heavy backbone, float32",
    "heavy-bf16": "A heavy backbone, bfloat16",
    "text": "Real text",
    "vocabulary": "By vocabulary",
    "response": "By response length",
    "ratio": "By share of selected tokens",
}
HEADS = {"vocabulary": "vocabulary", "response": "response tokens", "ratio": "selected"}
AT_LEAST = {  # ratio to TRL's batches of 4 that is wanted: (table, side)
    ("small", "separate"): 5.3,
    ("small", "shared"): 6.0,
    ("small", "sepo"): 9.1,
    ("heavy", "shared"): 2.5,
    ("heavy-bf16", "shared"): 2.6,
    ("text", "shared"): 5.0,
}
SCORING_AT_LEAST = 3.0
SEPO_AT_MOST = 0.6  # of a DPO step's time
SEPO_RATIO = 0.3
STATE_BYTES = 12  # a float32 weight's gradient and AdamW's two moments
TOLERANCE = {"heavy-bf16": 1e-2}  # of a loss, relative; bfloat16 rounds TRL's and our log-probs in other places


CLOCK = """\
* "Processor time" counts a process's own work, for a machine on which others work too; with one thread it is the
  wall time of an idle core.
"""


def difference(run: Run, side: str) -> float:
    """Largest relative difference of a step's loss from that of TRL's batches of 4; NaN for another method."""
    peer, mine = (run["sides"][name]["losses"] for name in ("trl 4", side))
    if side == "sepo":
        return float("nan")
    return max(abs(a - b) / abs(a) for a, b in zip(peer, mine, strict=True))


def equal(run: Run) -> bool:
    """Whether all runs of DPO have TRL's losses at every step; without that no ratio means anything."""
    bound = TOLERANCE.get(run["table"], 1e-4)
    return all(difference(run, side) <= bound for side in run["sides"] if side != "sepo")


def comparison(run: Run) -> str:
    """One setting, all sides."""
    sides = run["sides"]
    peers = [peer for peer in ("trl 4", "trl 1") if peer in sides]
    rows = []
    for name, side in sides.items():
        pace = side["pairs_per_second"]
        ratios = [ratio(run, pace / sides[peer]["pairs_per_second"]) for peer in peers]
        ratios.insert(1, wanted(run, AT_LEAST.get((run["table"], name))))
        rows.append([SIDES[name], f"{pace:.2f}", *ratios, memory(side, sides, "peak_bytes")])
    against = ["against batches of 4", "wanted there", "against micro-batch 1"][: len(peers) + 1]
    text = markdown(["run", "pairs/s", *against, "peak memory (share)"], rows)
    dpo = [side for side in sides if side not in ("trl 4", "sepo")]
    worst = max(difference(run, side) for side in dpo)
    losses = ", ".join(f"{loss:.6f}" for loss in sides["shared"]["losses"])
    text += f"\nLosses of the steps: {losses}; largest relative difference from TRL's: {worst:.1e}.\n"
    text += sepo(run) if equal(run) and not run["measured"]["quick"] else ""
    return text + "\n" + scoring(run)


def ratio(run: Run, value: float) -> str:
    """A ratio's cell: none where losses differ, and none of toy sizes."""
    if not equal(run):
        return "losses differ"
    return "losses agree" if run["measured"]["quick"] else f"{value:.2f}x"


def wanted(run: Run, goal: float | None) -> str:
    """A goal's cell; toy sizes have none."""
    return "" if goal is None or run["measured"]["quick"] else f"{goal:g}x"


def sepo(run: Run) -> str:
    """What selection saves of a step, beside what it can save."""
    paces = [run["sides"][name]["pairs_per_second"] for name in ("shared", "sepo")]
    share = paces[0] / paces[1]
    verdict = "reached" if share < SEPO_AT_MOST else "missed"
    return (
        f"A SePO step takes {share:.2f} of the time of a DPO step (wanted: below {SEPO_AT_MOST:g}; {verdict}); "
        f"its matrix products alone are {products(run):.2f} of those of a DPO step.\n"
    )


def products(run: Run) -> float:
    """SePO's matrix products as a share of DPO's, `shared` layout, attention's own left out.

    The backbone goes over all tokens, three times in all (forward, and the gradients of inputs and weights), the head
    over the scored ones, four times, because the backward pass makes the logits anew.
    """
    hidden, layers = run["hidden"], run["layers"]
    inner = Shape(run["vocabulary"], hidden, layers).config()["intermediate_size"]
    responses = run["mean_chosen"] + run["mean_rejected"]
    backbone = 3 * layers * (4 * hidden**2 + 3 * hidden * inner) * (run["mean_prompt"] + responses)
    head = 4 * run["vocabulary"] * hidden * responses
    return float((backbone + SEPO_RATIO * head) / (backbone + head))


def memory(side: Run, sides: Run, name: str) -> str:
    """A peak, and its share of that of TRL's batches of 4."""
    return f"{mb(side[name])} ({side[name] / sides['trl 4'][name]:.2f})"


def scoring(run: Run) -> str:
    """Reference log-probs of all pairs, prompts counted once a response."""
    rows = []
    sides = {name: side for name, side in run["sides"].items() if "scoring_seconds" in side}
    for name, side in sides.items():
        shown = ratio(run, sides["trl 4"]["scoring_seconds"] / side["scoring_seconds"])
        goal = wanted(run, None if name.startswith("trl") else SCORING_AT_LEAST)
        pace = run["tokens"] / side["scoring_seconds"]
        rows.append([SIDES[name], f"{pace:,.0f}", shown, goal, memory(side, sides, "scoring_peak_bytes")])
    return markdown(
        ["reference log-probs", "tokens/s", "against batches of 4", "wanted there", "peak memory (share)"], rows
    )


def growth(runs: list[Run]) -> str:
    """One property's values, our side alone."""
    rows = []
    for run in runs:
        (side,) = run["sides"].values()
        value = f"{run['value']:.0%}" if run["table"] == "ratio" else f"{run['value']:,}"
        extra = side["peak_bytes"] - side["before_bytes"] - STATE_BYTES * side["parameters"]
        rows.append([value, f"{side['pairs_per_second']:.2f}", mb(side["peak_bytes"]), mb(extra)])
    return markdown(
        [HEADS[runs[0]["table"]], "pairs/s", "peak memory", "of that neither imports nor model, gradients, AdamW"], rows
    )


def about(runs: list[Run]) -> str:
    """The model and the texts of a table, what all its runs have in common, and how it was measured."""
    run, how = runs[-1], runs[-1]["measured"]
    seconds = "processor time" if how["clock"] == "cpu" else "wall time"
    common = {name for name in run if all(one[name] == run[name] for one in runs)}
    model = ["Llama", f"vocabulary {run['vocabulary']:,}"][: 1 + ("vocabulary" in common)]
    means = [name for name in ("prompt", "chosen", "rejected") if f"mean_{name}" in common]
    lengths = " / ".join(f"{run[f'mean_{name}']:.0f}" for name in means)
    return (
        f"{', '.join(model)}, hidden {run['hidden']}, {run['layers']} layers; "
        f"mean tokens of {', '.join(means)} {lengths}. "
        f"{how['steps']} steps of {how['batch']} pairs, ours in micro-batches of at most {how['max_tokens']:,} tokens, "
        f"the fastest of {how['repetitions']}, {how['threads']} thread{'s' * (how['threads'] > 1)}, {seconds}."
    )


def tables(runs: list[Run]) -> str:
    """All tables, in one order, the last run of each."""
    parts = []
    for name, title in TITLES.items():
        found = [run for run in runs if run["table"] == name]
        if not found:
            continue
        body = growth(found) if name in HEADS else comparison(found[-1])
        parts.append(f"## {title}\n\n{about(found if name in HEADS else found[-1:])}\n\n{body}")
    return "\n".join(parts)


def page(found: dict[str, Any]) -> str:
    """docs/training-speed.md."""
    at = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    quick = any(run["measured"]["quick"] for run in found["runs"])
    note = "**A quick run: it shows that everything runs, and measures nothing.**\n\n" if quick else ""
    made = {run["table"] for run in found["runs"]}
    for name, reason in found.get("left_out", {}).items():
        note += "" if name in made else f'Left out: "{TITLES[name]}", because {reason}.\n\n'
    clock = CLOCK if any(run["measured"]["clock"] == "cpu" for run in found["runs"]) else ""
    return f"""# Speed of training

{note}Written by `python benchmarks/train.py --write docs/training-speed.md` on {at["date"]}: {at["cpu"]},
{at["cores"]} cores, Python {at["python"]}, {versions}.

{tables(found["runs"])}
## How it is measured

* Peer and we run by turns, each in a process of its own; of every step the fastest run counts. The first step, in
  which memory is touched for the first time, does not count. Seconds are those of the whole loop: data, forward,
  backward, clipping, AdamW, metrics.
* Both sides build the model from one configuration with one seed, take the same pairs in the same order,
  with the same learning rate and the same reference log-probs, precomputed. TRL runs without activation
  checkpointing, which would make it slower, and is given token ids. No ratio is given unless the losses agree at
  every step to 1e-4 (bfloat16: 1e-2).
* Synthetic pairs: prompts of 64 to 256 tokens, uniform; responses log-normal, 95 % of them within 32 and 512, cut
  there. Real text: AlpacaEval answers, GPT-NeoX-20B's tokenizer, at most 1,024 tokens.
* "Wanted there" is a goal for the column before it: the ratio to TRL's batches of 4, padded. Against micro-batch 1
  no goal was set.
* SePO selects by chance here, so that a response's tail is seldom spared. Selection spares the head; the backbone still
  goes over prompts and responses. So a SePO step comes the nearer to a DPO step the more of the work the backbone has:
  the share of matrix products beside each measured share counts three passes of the backbone over all tokens, four of
  the head over the scored ones, and neither attention nor AdamW.
* `shared` saves the second copy of each prompt. Where prompts are short against responses that is little: of the real
  text's means, 38 of 600 tokens a pair. Against it stands that a response which does not follow its prompt at once is
  computed, by the loop of SDPA calls, under a mask in place of the plain causal rule. Try `--layout separate` where
  prompts are much shorter than responses.
* In bfloat16 TRL computes as its default says (float32 weights, products in bfloat16); we with bfloat16 weights and
  a float32 copy for AdamW.
* Peak memory is the process's resident set during training, or during scoring, with imports and model in it. Ours
  grows with the micro-batch, whose tokens `--max_tokens_per_batch` bounds: 16,384 in a run that does not set it.
{clock}* By vocabulary, what grows besides model, gradients and AdamW is the gradient of one vocabulary weight, which
  autograd makes for each micro-batch before it adds it up: vocabulary x hidden x 4 bytes, whatever the number of
  tokens.
* `--only TABLE --steps N --batch N --repetitions N --out FILE` measures some of the tables; `--add FILE` puts those of
  earlier runs on the page, and with `--only` alone nothing is measured anew. Each table says how it was measured. "Real
  text" needs data that is not in a clone: `data/alpaca-pairs-train.parquet` and `data/tokenizers/gpt-neox-20b.json` in
  the folder that `PYPREFOPT_SHARED` names; without them it is left out.
* The whole setting: `python benchmarks/train.py --steps 33 --repetitions 1 --only small` (512 pairs counted); by
  default a few steps.
"""
