"""The operator body on the CPU: blocks of scores that stay in the cache, never a whole matrix.

As on a GPU in two passes. The first keeps of every group of the queue's rows the largest score; the second computes
the groups with the best maxima again in fp32, as exactly as `z` came: the k best rows lie in the k best groups. For a
bfloat16 queue the passes are `native` in C, the first where that is faster, and see one group of the queue at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arithmetic import plain_arithmetic
from ..rows import unit_rows
from . import native

# Rows of z and of the queue in a block of scores: 2 MB in fp32, and the block of the queue as much again at D = 512.
ROWS, COLUMNS = 512, 1024
# Rows of the queue in a group, which divides COLUMNS. The first pass costs the same for any; larger groups leave fewer
# maxima to choose from, smaller ones fewer candidates.
GROUP = native.GROUP
# Numbers of candidates (1 MB: larger blocks leave the cache), and of keys, that are in memory at a time.
CANDIDATES, KEYS = 1 << 18, 1 << 19
LAST = (1 << 32) - 1
LEAST = -(1 << 63)


def nearest_neighbor(z: Tensor, queue: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> rows [B, k, D] in the dtype of `z`, index [B, k] int64, similarity [B, k] fp32."""
    index = z.new_empty((len(z), k), dtype=torch.int64)
    similarity = z.new_empty((len(z), k), dtype=torch.float32)
    for start in range(0, len(z), ROWS):
        rows = slice(start, start + ROWS)
        unit, _ = unit_rows(z[rows].float())
        if queue.dtype == torch.bfloat16 and native.preferred():
            peaks = native.peaks(unit, queue)
        else:
            with plain_arithmetic(queue.dtype):
                peaks = _peaks(unit, queue)
        with plain_arithmetic(torch.float32):
            index[rows], similarity[rows] = _pick(unit, queue, _best_groups(peaks, k), k)
    found = queue.index_select(0, index.view(-1)).view(*index.shape, -1).to(z.dtype)
    return found, index, similarity


def _peaks(unit: Tensor, queue: Tensor) -> Tensor:
    """[groups, rows]: the largest score of each group of the queue, the last of which may be smaller."""
    operand = unit.T
    scratch = unit.new_empty((min(COLUMNS, len(queue)), len(unit)))
    peaks = unit.new_empty((-(-len(queue) // GROUP), len(unit)))
    for start in range(0, len(queue), COLUMNS):
        part = queue[start : start + COLUMNS].float()
        score = torch.mm(part, operand, out=scratch[: len(part)])
        full, first = len(part) // GROUP, start // GROUP
        grouped = score[: full * GROUP].view(full, GROUP, len(unit))
        torch.amax(grouped, 1, out=peaks[first : first + full])
        if full * GROUP < len(part):
            torch.amax(score[full * GROUP :], 0, out=peaks[first + full])
    return peaks


def _best_groups(peaks: Tensor, k: int) -> Tensor:
    """[rows, min(k, groups)]: the groups with the largest maxima; of equal ones the first."""
    if k == 1:
        return peaks.T.contiguous().argmax(1, keepdim=True)  # rows apart: twice as fast
    groups, best = len(peaks), []
    place = torch.arange(groups)
    for part in peaks.split(max(1, KEYS // groups), 1):
        best.append(_place_of(_keys(part.T, place).topk(min(k, groups), 1, sorted=False).values))
    return torch.cat(best)


def _pick(unit: Tensor, queue: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Index and similarity [rows, k] of the best rows in `groups` [rows, .], nearest first."""
    step = max(1, KEYS // (groups.shape[1] * GROUP))
    found = []
    for some, part in zip(groups.split(step), unit.split(step), strict=True):
        place = (some[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)
        real = place < len(queue)
        place.clamp_(max=len(queue) - 1)
        keys = _keys(_scores(part, queue, place), place).masked_fill_(~real, LEAST)
        found.append(keys.topk(k, 1).values)
    keys = torch.cat(found)
    return _place_of(keys), _monotone((keys >> 32).int()).view(torch.float32)


def _scores(unit: Tensor, queue: Tensor, place: Tensor) -> Tensor:
    """[rows, count] fp32: similarities of each row with rows `place` [rows, count] of the queue."""
    if queue.dtype == torch.bfloat16 and native.versions():
        return native.scores(unit, queue, place)
    found = []
    step = max(1, CANDIDATES // (place.shape[1] * unit.shape[1]))
    for some, part in zip(place.split(step), unit.split(step), strict=True):
        candidates = queue.index_select(0, some.view(-1)).view(*some.shape, -1).float()
        found.append(torch.bmm(candidates, part[:, :, None]).squeeze(2))
    return torch.cat(found)


def _keys(score: Tensor, place: Tensor) -> Tensor:
    """One integer a score that orders like (score, −place), as `pack` in `kernel`."""
    bits = torch.where(score.isnan(), -torch.inf, score).add_(0.0).view(torch.int32)
    return (_monotone(bits).long() << 32) | (LAST - place)


def _monotone(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _place_of(keys: Tensor) -> Tensor:
    return LAST - (keys & LAST)
