"""Numbers in 8 bits: blocks of 256 that share a scale, each number the nearest of 256 values (Dettmers et al. 2022).

    code  = nearest value of the map to x / scale        scale = largest abs(x) of the block
    x     ≈ map[code] · scale

The maps are dense near zero and span seven powers of ten (dynamic tree quantisation, arXiv 2110.02861, §1.3 and §2.1): in the
decade from 10^(e-1) to 10^e lie 2^(6+e) values of either sign, or twice as many where nothing is negative, e from -6 to 0.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BLOCK = 256
_DECADES = 7


def blocks_of(numel: int) -> int:
    """Blocks that so many numbers take; the last may be shorter."""
    return -(-numel // BLOCK)


def value_map(*, signed: bool) -> Tensor:
    """The 256 values, rising, fp32 on the CPU: middles of even cuts of each decade from 0.1 to 1, zero, and one."""
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        cuts = 2**decade if signed else 2 ** (decade + 1)
        middles = [0.1 + 0.9 * (place + 0.5) / cuts for place in range(cuts)]
        scaled = [10.0 ** (decade - _DECADES + 1) * middle for middle in middles]
        values += [*scaled, *(-value for value in scaled)] if signed else scaled
    return torch.tensor(sorted(values), dtype=torch.float64).float()


class _Table:
    """A map on a device, made so that a code is found by two look-ups.

    Shares whose fp32 bits begin with the same 16 are so close together that at most one middle between two values lies among
    them: what their smallest one is nearest to, or the value above it.

    Attributes:
        values: fp32, 256.
        starts: by the first 16 bits, the code of the smallest such share.
        bounds: by the same, the middle beyond which the code is the next one.
    """

    def __init__(self, device: torch.device, *, signed: bool) -> None:
        values = value_map(signed=signed)
        middles = (values[1:] + values[:-1]) / 2
        first = torch.arange(1 << 16, dtype=torch.int64) << 16
        first = torch.where(first >= 1 << 31, first - (1 << 32), first).to(torch.int32)
        ends = [bits.view(torch.float32) for bits in (first, first | 0xFFFF)]
        codes = torch.bucketize(torch.minimum(*ends).nan_to_num(0.0, 1.0, -1.0), middles)
        self.values = values.to(device)
        self.starts = codes.to(torch.uint8).to(device)
        self.bounds = torch.cat([middles, torch.tensor([torch.inf])])[codes].to(device)

    def codes(self, shares: Tensor) -> Tensor:
        """Codes of the nearest values, uint8, of finite fp32 numbers from -1 to 1."""
        places = ((shares.view(torch.int32) >> 16) & 0xFFFF).view(-1)
        found = self.starts.index_select(0, places)
        return found.add_(shares.view(-1) > self.bounds.index_select(0, places))


@functools.cache
def _on(device: torch.device, signed: bool) -> _Table:
    return _Table(device, signed=signed)


def prepare(device: torch.device) -> None:
    """Put the maps on a device, for which the host may have to wait once."""
    for signed in (True, False):
        _on(device, signed)


def pack(numbers_N: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, N) and scales (fp32, one a block) of finite fp32 numbers.

    Args:
        numbers_N: in one dimension.
        signed: whether they may be negative.
    """
    count = numbers_N.numel()
    padded = torch.nn.functional.pad(numbers_N, (0, blocks_of(count) * BLOCK - count)).view(-1, BLOCK)
    scales = padded.abs().amax(1)
    shares = padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return _on(numbers_N.device, signed).codes(shares)[:count], scales


def unpack(codes_N: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The numbers that codes and scales stand for, fp32 N."""
    count = codes_N.numel()
    found = _on(codes_N.device, signed).values.index_select(0, codes_N.int())
    return found.mul_(scales.repeat_interleave(BLOCK)[:count])
