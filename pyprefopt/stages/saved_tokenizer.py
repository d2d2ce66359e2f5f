"""The run's tokenizer as users will load it from what is saved, compared on the run's own texts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.checkpoints.source import resolve_source
from pyprefopt.modeling.checkpoints.tokenizer import Expected, write_tokenizer
from pyprefopt.stages.data import open_splits
from pyprefopt.stages.sources import named_sources

if TYPE_CHECKING:
    from pyprefopt.data.tokenization.tokenizer import Tokenizer
    from pyprefopt.settings.config import RunConfig
    from pyprefopt.stages.stage import Artifact

ROWS = 64  # rows of each split whose texts are compared
CHATS = 16  # rows whose chats are rendered
logger = logging.getLogger("pyprefopt")
PROBE = "It doesn't  IT'S 1234 x=[1,22];\n\n\t Straße Привет 今天天气 مرحبا 😀 \n end. "


def check_saved(config: RunConfig, data: Artifact) -> None:
    """Look at how AutoTokenizer will load the tokenizer beside the models that are trained, before they are.

    Raises:
        ConfigError: it would give other ids, or other texts of chats, than the run has.
    """
    models = [config.model, config.base.path if config.policy_init == "base" else None]
    for model in dict.fromkeys(model for model in models if model is not None):
        with TemporaryDirectory() as folder:
            difference = beside(model, config, data, Path(folder))
        if difference is not None:
            raise ConfigError(
                f"the tokenizer would be saved beside a model of the kind of {model}, but there {difference}; give the "
                "model a tokenizer of its own kind, or take another model"
            )


@contextmanager
def tokenizer_files(model: str, config: RunConfig, data: Artifact) -> Iterator[list[Path]]:
    """The tokenizer's files as they stand beside a trained model of this kind."""
    with TemporaryDirectory() as folder:
        difference = beside(model, config, data, Path(folder))
        if difference is not None:
            logger.warning("the tokenizer is saved, but %s", difference)
        yield [file for file in sorted(Path(folder).iterdir()) if file.name != "config.json"]


def beside(model: str, config: RunConfig, data: Artifact, folder: Path) -> str | None:
    """Write the tokenizer as it stands beside a trained model of this kind; says what AutoTokenizer makes otherwise."""
    source = resolve_source(model, trust_remote_code=config.trust_remote_code)
    shutil.copyfile(source / "config.json" if source.is_dir() else source, folder / "config.json")
    return write_tokenizer(folder, sorted((data.directory / "tokenizer").iterdir()), expected(config, data))


def expected(config: RunConfig, data: Artifact) -> Expected:
    """What the run's tokenizer makes of a sample of the run's texts, and of its chats."""
    from pyprefopt.data.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data.directory / "tokenizer")
    texts = list(dict.fromkeys([PROBE, *_texts(data)]))
    ids = dict(zip(texts, tokenizer.encode(texts).to_list(), strict=True))
    templates = (tokenizer.chat_template, *tokenizer.other_templates.values())
    timed = any("strftime_now" in template for template in templates)
    return Expected(ids, [] if timed else list(_rendered(tokenizer, _chats(config))))


def _texts(data: Artifact) -> Iterator[str]:
    """Texts of rows from all over the splits, as the tokenizer reads its ids."""
    from tokenizers import Tokenizer

    decoder = Tokenizer.from_file(str(data.directory / "tokenizer" / "tokenizer.json"))
    for _, store in open_splits(data):
        offsets = store.group_offsets
        for group in np.unique(np.linspace(0, len(offsets) - 2, ROWS).astype(int)).tolist():
            lines = store.table["ids"].slice(offsets[group], 2).to_pylist()
            yield decoder.decode([token for line in lines for token in line], skip_special_tokens=False)


def _chats(config: RunConfig) -> Iterator[dict[str, Any]]:
    """What apply_chat_template takes of the first rows; of a ready folder, which holds no texts, a made-up chat."""
    from pyprefopt.data.reading.blocks import parse_block
    from pyprefopt.data.reading.frames import plain_messages, template_options

    yield {"conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for source in named_sources(config).values():
        if source.folder is None:
            rows = parse_block(source.rows.first_block.head(CHATS), source.rows.format).frame
            for row in rows.iter_rows(named=True):
                side = next(name for name in ("chosen", "response", "responses") if name in row)
                response = row[side][0] if side == "responses" else row[side]
                yield {"conversation": plain_messages([*row["prompt"], *response]), **template_options(row)}


def _rendered(tokenizer: Tokenizer, chats: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """The chats with their texts; those that the template refuses were told of."""
    for chat in chats:
        options = {name: value for name, value in chat.items() if name != "conversation"}
        try:
            yield chat, tokenizer.render(chat["conversation"], **options)
        except ConfigError:
            continue
