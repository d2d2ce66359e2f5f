"""Packed batches: which groups share a micro-batch, and its arrays, made in Rust with the GIL released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyprefopt.data import _native
from pyprefopt.data.store.segments import KINDS, SegmentStore, value_lists
from pyprefopt.errors import DataError, check, check_number
from pyprefopt.types import PackedBatch

Layout = Literal["shared", "separate"]
Groups = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bins(Sequence[Groups]):
    """A sequence of bins, each the indices of its items, ascending; held as two flat arrays.

    offsets: [bins + 1] i64; items: [items] i64. Bin b is items[offsets[b]:offsets[b + 1]], a view.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Groups: ...
    @overload
    def __getitem__(self, index: slice) -> list[Groups]: ...
    def __getitem__(self, index: int | slice) -> Groups | list[Groups]:
        if isinstance(index, slice):
            return [self[b] for b in range(*index.indices(len(self)))]
        b = range(len(self))[index]  # IndexError; negative ones from the end
        return self.items[self.offsets[b] : self.offsets[b + 1]]


def pack_lengths(lengths: Any, max_tokens: int, max_groups: int | None = None) -> Bins:
    """Pack items into bins of at most `max_tokens` in sum, by best-fit decreasing; see `Packer.plan`.

    Whatever else has a length can be packed with it.

    Args:
        lengths: [n] integers >= 0; NumPy, a Polars Series, an Arrow array or a list.
        max_tokens: largest sum of a bin.
        max_groups: most items of a bin; None: no limit.

    Returns:
        A sequence of bins, each the ascending i64 indices of its items.

    Raises:
        ConfigError: a bound that is not positive.
        DataError: a length that is negative, null or larger than `max_tokens`; names the item.

    Example:
        >>> [items.tolist() for items in pack_lengths([5, 3, 4, 2], 8)]
        [[0, 1], [2, 3]]
    """
    _check_bounds(max_tokens, max_groups)
    with _data_errors():
        return Bins(*_native.pack_lengths(_integers(lengths), max_tokens=max_tokens, max_groups=max_groups))


def _integers(lengths: Any) -> NDArray[np.int64]:
    """[n] i64, contiguous; not copied where it is that already."""
    if hasattr(lengths, "__arrow_c_stream__") or hasattr(lengths, "__arrow_c_array__"):
        column = pa.chunked_array(lengths if hasattr(lengths, "__arrow_c_stream__") else [lengths])
        if column.null_count:
            nulls = column.is_null().to_numpy()
            more = f" (and {nulls.sum() - 1} more)" if nulls.sum() > 1 else ""
            raise DataError(f"lengths[{int(np.argmax(nulls))}] is null{more}; fill or drop it")
        lengths = column.to_numpy()
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"lengths must be integers in one dimension, got {array.dtype} {array.shape}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"lengths[{int(array.argmax())}] must be below 2^63, got {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _check_bounds(max_tokens: int, max_groups: int | None) -> None:
    check_number("max_tokens", max_tokens, whole=True)
    if max_groups is not None:
        check_number("max_groups", max_groups, whole=True)
    check(0 < max_tokens < 2**63, "max_tokens", max_tokens, "> 0 and below 2^63")
    check(max_groups is None or 0 < max_groups < 2**63, "max_groups", max_groups, "> 0 and below 2^63, or None")


class Packer:
    """A Packer lays groups (a prompt with its responses) of a store out as micro-batches without padding.

    The columns are held as they are (memory-mapped where the store is). Nothing is computed for a token whose user
    weight is 0: it is not scored, though lengths count it. Without `last_token`, inputs end before the last scored
    token of a response: it is only a target, and what follows it is not computed. A group without a scored token costs
    nothing: its responses and its pair are in a batch, for the loss is a mean over it too, but none of its tokens.

    Args:
        segments: a SegmentStore, or a segments frame (Polars, or a PyArrow table).
        layout: `shared` keeps the prompt once for all its responses, `separate` once for each.
        selected: list<bool>, the tokens that are scored, among those in `mask`; None: all in `mask`. This and the next
            three are each a ValueStore of this store, or lists aligned with its lines (PyArrow or Polars; null for
            prompts), or flat NumPy as in `ValueStore.write`. Where one is not given, the segments' column of its name
            is taken if there is one.
        token_rewards: list<f32>.
        ref_logps: list<f32>, in nats.
        user_weights: list<f32>.
        chosen_ratio: the ratio that `selected` was made with; it becomes `selection_ratio` (1 unless given, as for a
            threshold; a column `selected` needs it).
        rejected_ratio: likewise.
        only: take the responses of this kind alone, for example `chosen` for SFT; then there are no pairs.
        last_token: a head reads each response at its last token: all its tokens are inputs, and batches have
            `last_index`.
        whole: all tokens of a response are inputs, for a model that reads a token otherwise in a longer document.
        keep_unweighted: tokens of user weight 0 are scored like the others, for a method that reads their log-probs.
        budget_names: what a user raises or lowers where a group is larger than the budget of `plan`; for its message.

    Raises:
        ConfigError: a setting breaks its rule, or a column `selected` comes without the ratios.
        DataError: the lines are no segments, a prompt is without a token, or values are not one per token; names the
            row.
        ArtifactError: a ValueStore was made for other segments.

    Example:
        >>> packer = Packer(SegmentStore.open("prepared"), layout="shared")
        >>> bins = packer.plan(max_tokens=4096)
        >>> batches = packer.assemble(bins)  # PackedBatch of NumPy arrays, one a bin
    """

    def __init__(
        self,
        segments: Any,
        *,
        layout: Layout = "shared",
        selected: Any = None,
        token_rewards: Any = None,
        ref_logps: Any = None,
        user_weights: Any = None,
        chosen_ratio: float | None = None,
        rejected_ratio: float | None = None,
        only: Literal["chosen", "rejected", "response"] | None = None,
        last_token: bool = False,
        whole: bool = False,
        keep_unweighted: bool = False,
        budget_names: tuple[str, str] = ("max_tokens", "the max_tokens of data.tokenize"),
    ) -> None:
        check(layout in ("shared", "separate"), "layout", layout, "'shared' or 'separate'")
        check(only is None or only in KINDS[1:], "only", only, f"one of {', '.join(KINDS[1:])}")
        store = segments if isinstance(segments, SegmentStore) else SegmentStore.from_frame(segments)
        given = {"token_rewards": token_rewards, "user_weights": user_weights, "ref_logps": ref_logps}
        given |= {"selected": selected}
        is_column = {name: column is None and name in store.table.column_names for name, column in given.items()}
        given |= {name: store.table[name] for name, there in is_column.items() if there}
        ratios = {"chosen_ratio": chosen_ratio, "rejected_ratio": rejected_ratio}
        for name, ratio in ratios.items():
            remedy = "the one of select_top_k (0.3 unless you chose another), or 1 where no ratio selected"
            check(not is_column["selected"] or ratio is not None, name, ratio, "given with a column `selected`", remedy)
            if ratio is not None:
                check_number(name, ratio)
                check(0 < ratio <= 1, name, ratio, "in (0, 1]")
                check(given["selected"] is not None or ratio == 1, name, ratio, "1 without `selected`")
        self.store, self.layout, self.num_groups = store, layout, store.num_rows
        self.budget_names, self.last_token = budget_names, last_token
        self.values = tuple(name for name, column in given.items() if column is not None and name != "selected")
        columns: dict[str, Any] = {
            name: None if column is None else value_lists(store, column, name) for name, column in given.items()
        }
        with _data_errors():
            make: Callable[..., Any] = partial(
                _native.Packer,
                store.table["ids"], store.table["mask"], store.kinds, store.scores, store.rows, store.group_offsets,
                layout=layout, chosen_ratio=1.0 if chosen_ratio is None else chosen_ratio,
                rejected_ratio=1.0 if rejected_ratio is None else rejected_ratio,
                only=None if only is None else KINDS.index(only), keep_unweighted=keep_unweighted, **columns,
            )  # fmt: skip
            self._native: _native.Packer = make(last_token=last_token or whole)
            self._cut: _native.Packer = make(last_token=False) if whole and not last_token else self._native

    def lengths(self, groups: Groups | None = None) -> NDArray[np.int64]:
        """Count the input tokens that each group costs in this layout, tails after the last scored token left out.

        Args:
            groups: i64 indices of groups; None: all.

        Returns:
            [groups] i64; 0 where no token of the group has a weight.
        """
        with _data_errors():
            return self._native.lengths(self._indices(groups))

    def weightless(self, groups: Groups) -> NDArray[np.bool_]:
        """Whether no token of each group has a weight, so that no loss depends on it; never where a head reads all."""
        with _data_errors():
            free: NDArray[np.bool_] = self._cut.lengths(self._indices(groups)) == 0
        return free

    def plan(self, groups: Groups | None = None, *, max_tokens: int, max_groups: int | None = None) -> Bins:
        """Share groups out over micro-batches, by best-fit decreasing.

        Groups go by falling cost (ties: as given) into the fullest bin that has room (ties: the bin that was filled
        last), else into a new one. Bins are in the order they were opened, groups in a bin in the order given, so the
        result depends on nothing else. Groups that cost nothing are dealt out to the bins and count for neither bound.

        Args:
            groups: i64 indices of groups; None: all.
            max_tokens: most input tokens of a bin.
            max_groups: most groups of a bin; None: no limit.

        Returns:
            A sequence of bins, each the i64 indices of its groups.

        Raises:
            ConfigError: a bound that is not positive.
            DataError: a group is larger than `max_tokens`.
        """
        _check_bounds(max_tokens, max_groups)
        try:
            return Bins(*self._native.plan(self._indices(groups), max_tokens=max_tokens, max_groups=max_groups))
        except ValueError as error:
            raised, lowered = self.budget_names
            remedy = f"; raise {raised}, or lower {lowered}" if "more than the budget" in str(error) else ""
            raise DataError(f"{error}{remedy}") from None

    def assemble(self, bins: Sequence[Groups]) -> list[PackedBatch]:
        """Lay bins out as batches.

        Args:
            bins: of `plan`.

        Returns:
            One PackedBatch (NumPy arrays) per bin.

        Raises:
            DataError: a value is not finite at a scored token.
        """
        with _data_errors():
            made = self._native.assemble([self._indices(one) for one in bins])
        unread = {} if self.last_token else {"last_index": None}
        return [PackedBatch(**arrays | unread) for arrays in made]

    def pack(
        self, groups: Groups | None = None, *, max_tokens: int, max_groups: int | None = None
    ) -> list[PackedBatch]:
        """Call `plan`, then `assemble`; arguments and errors are theirs."""
        return self.assemble(self.plan(groups, max_tokens=max_tokens, max_groups=max_groups))

    def _indices(self, groups: Groups | None) -> Groups:
        return np.arange(self.num_groups) if groups is None else np.ascontiguousarray(groups, dtype=np.int64)


def pack(
    segments: Any,
    *,
    max_tokens: int,
    layout: Layout = "shared",
    chosen_ratio: float | None = None,
    rejected_ratio: float | None = None,
) -> list[PackedBatch]:
    """Pack a whole set.

    Args:
        segments: a SegmentStore, or a segments frame (Polars, or a PyArrow table). Its columns `selected` (from
            `select_tokens`), `user_weights` (from `attach_weights`), `token_rewards` and `ref_logps` are honoured.
        max_tokens: most input tokens of a batch.
        layout: `shared` keeps the prompt once for all its responses, `separate` once for each.
        chosen_ratio: the ratio that `selected` was made with, for SePO divides by it: 1 for a side that was not
            selected by a ratio.
        rejected_ratio: likewise.

    Returns:
        Batches of NumPy arrays; `to` makes torch tensors of them.

    Raises:
        ConfigError: a column `selected` without the ratios, or a setting that breaks its rule.
        DataError: the lines are no segments, or a group is larger than `max_tokens`.

    Example:
        >>> pack(tokenize(pairs, tokenizer), max_tokens=4096)
    """
    packer = Packer(segments, layout=layout, chosen_ratio=chosen_ratio, rejected_ratio=rejected_ratio)
    return packer.pack(max_tokens=max_tokens)


def dummy_batch(values: Sequence[str] = (), *, last_token: bool = False) -> PackedBatch:
    """A batch of one token that counts nothing: for ranks that have fewer micro-batches than others.

    Its lengths are 1, so that a method may divide by them; its line and row are -1; it has no pair. `values` names the
    optional per-token arrays that it must have (zeros); `last_token`: as in Packer.
    """
    per_token = ("input_ids", "position_ids", "hidden_index", "target_ids", "response_index", "token_position")
    arrays: dict[str, Any] = {name: np.zeros(1, np.int64) for name in (*per_token, "response_group")}
    arrays |= {name: np.full(1, -1, np.int64) for name in ("segment_parent", "response_row", "response_line")}
    arrays |= {name: np.ones(1, np.float32) for name in ("response_length", "scored_length", "selection_ratio")}
    arrays |= {name: np.zeros(0, np.int64) for name in ("pair_chosen", "pair_rejected")}
    arrays |= {name: np.zeros(1, np.float32) for name in ("token_mask", *values)}
    arrays |= {"segment_offsets": np.array([0, 1]), "response_score": np.full(1, np.nan, np.float32)}
    if last_token:
        arrays["last_index"] = np.zeros(1, np.int64)
    return PackedBatch(**arrays)


class _data_errors:  # noqa: N801
    """Turn the extension's ValueError into DataError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if type(error) is ValueError:
            raise DataError(str(error)) from None
