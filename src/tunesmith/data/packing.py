"""Documents into packs, and long documents into windows. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], atom_tokens: int, micro_batch_size: int | None = None) -> list[list[int]]:
    """Share documents out to packs by first-fit decreasing.

    By tokens alone it needs at most 11/9 of the fewest packs possible and 6/9 more (Dósa 2007).

    Args:
        lengths: tokens of each document.
        atom_tokens: most tokens of a pack; a longer document is a pack of its own.
        micro_batch_size: most documents of a pack, None for any number.

    Returns:
        positions in ``lengths``, each once; longer documents first, equal ones in their order.

    Raises:
        ValueError: a bound below 1 or a negative length.
    """
    if atom_tokens < 1 or (micro_batch_size is not None and micro_batch_size < 1):
        raise ValueError(f"a pack of {atom_tokens} tokens and {micro_batch_size} documents holds nothing")
    if any(length < 0 for length in lengths):
        raise ValueError("a length is negative")
    most = micro_batch_size or len(lengths)
    smallest = min(lengths, default=0)
    packs: list[list[int]] = []
    free: list[int] = []
    open_packs: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[position]
        place = next((index for index, number in enumerate(open_packs) if free[number] >= length), len(open_packs))
        if place == len(open_packs):
            open_packs.append(len(packs))
            packs.append([])
            free.append(atom_tokens)
        number = open_packs[place]
        packs[number].append(position)
        free[number] -= length
        if free[number] < smallest or len(packs[number]) == most:
            del open_packs[place]
    return packs


def windows(num_tokens: int, context: int) -> list[tuple[int, int]]:
    """Cut a long document into the fewest windows of at most ``context`` tokens, without loss or overlap.

    Their lengths differ by one at most, longer ones first: a window of a single token, which has nothing to predict,
    comes only of a document of one token or a context below three.

    Returns:
        (start, end) of each window in tokens, end exclusive.

    Raises:
        ValueError: a context below 1 or a negative number of tokens.
    """
    if context < 1 or num_tokens < 0:
        raise ValueError(f"{num_tokens} tokens cannot be cut into windows of {context}")
    count = -(-num_tokens // context)
    if count == 0:
        return []
    base, longer = divmod(num_tokens, count)
    ends = [(number + 1) * base + min(number + 1, longer) for number in range(count)]
    return list(zip([0, *ends[:-1]], ends, strict=True))
