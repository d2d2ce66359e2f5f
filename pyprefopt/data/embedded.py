"""The embedded preference set: which tokens carry the preference is planted and known.

A prompt is filler words and one of eight animals. A response is `RESPONSE_WORDS` words long and holds `says` and a
sound `CHOICES` times. The right sound is the animal's own, the wrong one its partner's (cat and dog, cow and pig, ...).

What cannot be used to cheat, because it is equal on both sides by construction:
- lengths, and over each split the count of every filler word: a rejected response holds the filler of its chosen one
  in another order, but for a few words of the pair before, with its sounds at other places;
- over each split the count of every sound: each animal has the same number of rows, and a sound is right for one
  animal and wrong for exactly one other. Partners swap, so a pair (cat's sound, dog's sound) stands as often in the one
  order as in the other, and a reward that adds up words ranks half of the pairs right;
- in the SFT split own and partner's sound stand equally often, in random order, so that a base model trained on it
  has no preference.

The SFT split holds a third sound too, which only the one animal makes and which no pair uses: without it the two of a
couple look the same to a base model, since own and partner's sound are the same two words for both.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pyprefopt.errors import DataError, check
from pyprefopt.storage.hub import EMBEDDED_DATA

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")
Signal = Literal["even", "early", "late"]  # where in a response its sounds are

TEST = f"{EMBEDDED_DATA}/test"
ROWS = {EMBEDDED_DATA: ("train", 2000), TEST: ("test", 400)}  # name of a set -> its split and rows
COMPANIONS = {EMBEDDED_DATA: {"eval_data": TEST, "base.data": EMBEDDED_DATA}}  # what it is trained with

ANIMALS = ("cat", "dog", "cow", "pig", "duck", "owl", "bee", "frog")
SOUNDS = ("meow", "woof", "moo", "oink", "quack", "hoot", "buzz", "croak")  # of the animal at the same place
EXTRA = ("purr", "yap", "low", "grunt", "cackle", "screech", "drone", "chirp")  # a third sound, SFT only
MARKER = "says"
PROMPT_WORDS = 9  # words of a prompt, the animal included
RESPONSE_WORDS = 40  # words of a response: twice CHOICES for the markers and sounds, the rest filler
CHOICES = 12  # sounds of a response: 0.3 of its 41 tokens, as many as the default selection takes
CANDIDATES = (12, 8, 4, 0)  # right sounds of each of a prompt's responses; the others are its partner's
BORROWED = 4  # filler words of a rejected response that come from the pair before

UNK, PAD, EOS = "<|unk|>", "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_VOCABULARY = 420  # tokens: special ones, animals, sounds, the marker, and filler for the rest


@dataclass(frozen=True)
class ToyPaths:
    """Where `write_toy` put its files."""

    train: Path  # pairs, Parquet
    test: Path  # pairs, Parquet
    sft: Path  # prompt and response, Parquet
    tokenizer: Path  # directory that AutoTokenizer loads


def filler_words() -> tuple[str, ...]:
    """The filler, most frequent first: made-up words of two syllables, the same on every machine."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = [first + second for first in syllables for second in syllables]
    random.Random("filler").shuffle(words)  # noqa: S311
    taken = len(ANIMALS) + len(SOUNDS) + len(EXTRA) + 1 + len(ROLES) + 3
    return tuple(words[: _VOCABULARY - taken])


class _Writer:
    """Draws prompts and responses; one seeded source of randomness for a split."""

    def __init__(self, seed: str, signal: Signal = "even") -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._signal = signal
        self._filler = filler_words()
        self._zipf = list(accumulate(1 / rank for rank in range(1, len(self._filler) + 1)))

    def filler(self, count: int) -> list[str]:
        return self._random.choices(self._filler, cum_weights=self._zipf, k=count)

    def prompt(self, animal: int) -> str:
        words = self.filler(PROMPT_WORDS - 1)
        words.insert(self._random.randrange(PROMPT_WORDS), ANIMALS[animal])
        return " ".join(words)

    def response(self, filler: list[str], sounds: list[str]) -> tuple[str, list[dict[str, int]]]:
        """The text, and the byte spans of the sounds in it."""
        half = (len(filler) + len(sounds)) // 2
        places = {"even": (0, 2 * half), "early": (0, half), "late": (half, 2 * half)}[self._signal]
        slots = sorted(self._random.sample(range(*places), len(sounds)))
        words: list[str] = []
        spans: list[dict[str, int]] = []
        position, rest = 0, iter(filler)
        for slot in range(len(filler) + len(sounds)):
            if slot in slots:
                sound = sounds[len(spans)]
                start = position + len(MARKER) + 1
                spans.append({"start": start, "end": start + len(sound)})
                words.append(f"{MARKER} {sound}")
            else:
                words.append(next(rest))
            position += len(words[-1]) + 1
        return " ".join(words), spans

    def animals(self, rows: int) -> list[int]:
        """Every animal equally often, in random order."""
        return self.shuffled([row % len(ANIMALS) for row in range(rows)])

    def shuffled(self, items: list[T]) -> list[T]:
        return self._random.sample(items, len(items))

    def sound_pools(self, rows: int) -> list[list[str]]:
        """Each animal's sounds in an SFT split, shuffled: a quarter own, a quarter its partner's, the rest extra."""
        count = rows // len(ANIMALS) * CHOICES
        quarter = count // 4
        pools = []
        for animal in range(len(ANIMALS)):
            pool = [SOUNDS[animal]] * quarter + [SOUNDS[partner(animal)]] * quarter
            pools.append(self.shuffled(pool + [EXTRA[animal]] * (count - 2 * quarter)))
        return pools


def partner(animal: int) -> int:
    """The animal whose sound is wrong for `animal`: its neighbour in the couple."""
    return animal ^ 1


def pairs(seed: str, rows: int, signal: Signal = "even") -> pl.DataFrame:
    """`rows` preference pairs: prompt, chosen, rejected str, and the planted byte spans of both responses."""
    import polars as pl

    writer, records = _Writer(seed, signal), []
    fillers = [writer.filler(RESPONSE_WORDS - 2 * CHOICES) for _ in range(rows)]
    for row, animal in enumerate(writer.animals(rows)):
        borrowed = fillers[row - 1][:BORROWED] + fillers[row][BORROWED:]
        chosen, chosen_spans = writer.response(fillers[row], [SOUNDS[animal]] * CHOICES)
        rejected, rejected_spans = writer.response(writer.shuffled(borrowed), [SOUNDS[partner(animal)]] * CHOICES)
        records.append((writer.prompt(animal), chosen, rejected, chosen_spans, rejected_spans))
    spans = pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
    schema = {"prompt": pl.String, "chosen": pl.String, "rejected": pl.String}
    return pl.DataFrame(records, {**schema, "chosen_planted": spans, "rejected_planted": spans}, orient="row")


def candidates(seed: str, rows: int) -> pl.DataFrame:
    """`rows` candidate sets: prompt str, responses list<str> in random order, scores list<f64>: shares of right sounds.

    All responses of a prompt are of the same filler words, and over the rows every sound is right as often as wrong.
    """
    import polars as pl

    writer, records = _Writer(seed), []
    for animal in writer.animals(rows):
        filler, responses = writer.filler(RESPONSE_WORDS - 2 * CHOICES), []
        rights = writer.shuffled(list(CANDIDATES))
        for right in rights:
            sounds = [SOUNDS[animal]] * right + [SOUNDS[partner(animal)]] * (CHOICES - right)
            responses.append(writer.response(writer.shuffled(filler), writer.shuffled(sounds))[0])
        records.append((writer.prompt(animal), responses, [right / CHOICES for right in rights]))
    return pl.DataFrame(records, ["prompt", "responses", "scores"], orient="row")


def instructions(seed: str, rows: int) -> pl.DataFrame:
    """`rows` SFT examples: prompt and response str; sounds in random order, own and partner's equally often."""
    import polars as pl

    writer, records = _Writer(seed), []
    pools = writer.sound_pools(rows)
    for animal in writer.animals(rows):
        sounds = [pools[animal].pop() for _ in range(CHOICES)]
        text, _ = writer.response(writer.filler(RESPONSE_WORDS - 2 * CHOICES), sounds)
        records.append((writer.prompt(animal), text))
    return pl.DataFrame(records, {"prompt": pl.String, "response": pl.String}, orient="row")


def score_response(prompt: str, response: str) -> float:
    """The rule of the set: right sounds less wrong ones, over CHOICES; of a chosen response 1, of a rejected one -1.

    Args:
        prompt: a text with one of ANIMALS.
        response: any text; the sounds of other animals than the prompt's and its partner do not count.

    Raises:
        DataError: a prompt without an animal.

    Example:
        >>> score_response("bada cat dede", "says meow fufu says woof says meow")
        0.08333333333333333
    """
    animal = next((ANIMALS.index(word) for word in prompt.split() if word in ANIMALS), None)
    if animal is None:
        raise DataError(f"the rule is of prompts with one of {', '.join(ANIMALS)}, got {prompt[:80]!r}")
    words = response.split()
    return (words.count(SOUNDS[animal]) - words.count(SOUNDS[partner(animal)])) / CHOICES


def frame_of(name: str, kind: str) -> pl.DataFrame:
    """Preferences, candidates or instructions of the embedded set of that name, as `write_toy` writes them."""
    split, count = ROWS[name]
    if kind == "instructions":
        return instructions("0-sft", count)
    return candidates(f"0-candidates-{split}", count) if kind == "candidates" else pairs(f"0-{split}", count)


def write_tokenizer(directory: Path) -> None:
    """Train and write the tokenizer: every word one token, for `AutoTokenizer` and for `load_tokenizer`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=_VOCABULARY, special_tokens=[UNK, PAD, EOS, *ROLES], show_progress=False
    )
    tokenizer.train_from_iterator([" ".join((MARKER, *ANIMALS, *SOUNDS, *EXTRA, *filler_words()))], trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "pad_token": PAD,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_toy(
    directory: str | Path, *, seed: int = 0, train: int = 2000, test: int = 400, sft: int = 2000,
    signal: Signal = "even",
) -> ToyPaths:  # fmt: skip
    """Write the embedded set into `directory`; the bytes depend on the arguments alone.

    Args:
        directory: made if it is not there; files of the same names are replaced.
        seed: another seed draws other rows from the same words.
        train: rows of the split; a multiple of the number of animals, so that word counts balance.
        test: likewise.
        sft: likewise.
        signal: where in a response of a pair its sounds, which carry the preference, are: `even`, anywhere; `early`,
            all within its first 26 words; `late`, all behind its first 14 (of 40; a sound and its marker are two).

    Returns:
        Where the files are.

    Raises:
        ConfigError: a split's size is not a positive multiple of the number of animals, or there is no such signal.

    Example:
        >>> paths = write_toy("toy", train=8, test=8, sft=8)
        >>> pairs, tokenizer = read_preferences(paths.train), load_tokenizer(paths.tokenizer)
    """
    _check_rows(train=train, test=test, sft=sft)
    check(signal in get_args(Signal), "signal", signal, f"one of {', '.join(get_args(Signal))}")
    root = Path(directory)
    paths = ToyPaths(root / "train.parquet", root / "test.parquet", root / "sft.parquet", root / "tokenizer")
    write_tokenizer(paths.tokenizer)
    pairs(f"{seed}-train", train, signal).write_parquet(paths.train)
    pairs(f"{seed}-test", test, signal).write_parquet(paths.test)
    instructions(f"{seed}-sft", sft).write_parquet(paths.sft)
    return paths


def write_candidates(directory: str | Path, *, seed: int = 0, train: int = 2000, test: int = 400) -> tuple[Path, Path]:
    """Write candidate sets of the same world into `directory`: the paths of train and test; else as `write_toy`."""
    _check_rows(train=train, test=test)
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    paths = (root / "candidates-train.parquet", root / "candidates-test.parquet")
    for path, split, rows in zip(paths, ("train", "test"), (train, test), strict=True):
        candidates(f"{seed}-candidates-{split}", rows).write_parquet(path)
    return paths


def _check_rows(**splits: int) -> None:
    for name, rows in splits.items():
        check(rows > 0 and rows % len(ANIMALS) == 0, name, rows, f"a positive multiple of {len(ANIMALS)}")
