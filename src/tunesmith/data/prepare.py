"""From a recipe's sources to tokens on disk and an account of every row. Torch-free.

    resolve ──> hash the files ──> key ──cached?──> open
                                     └─ no ──> read held-out sources, then training ──> split, render, fit ──> store

Rows stream: memory holds one row, the hashes of held-out inputs, and the token stores' small tables.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tunesmith.data.builder import Builder, RowRenderer
from tunesmith.data.cache_key import SourceHashes, cache_key, stamp, writing
from tunesmith.data.prepared import META, Prepared, open_prepared
from tunesmith.data.reading import SourceFiles, resolve
from tunesmith.data.store import TornStore
from tunesmith.errors import DataError
from tunesmith.files import new_folder, remove_folder, sweep
from tunesmith.recipe.root import Recipe

__all__ = ["Notify", "Prepared", "cache_key", "load_cached", "prepare", "source_files"]

Notify = Callable[[str], None]

_HASH_UNASKED_BYTES = 64 << 20
"""``load_cached`` hashes no more than this: planning must stay under a second."""


def prepare(
    recipe: Recipe,
    renderer: RowRenderer,
    context: int,
    cache_root: Path,
    notify: Notify = lambda _: None,
    *,
    verify: bool = False,
) -> Prepared:
    """Return the tokens of a recipe's data, from the cache where they are there whole.

    Args:
        recipe: names sources, splits and policies.
        renderer: turns records into ids and masks; raises BadRow for a faulty row.
        context: most tokens of a row.
        cache_root: see ``cache_key.cache_root``.
        notify: told what happens, a sentence at a time.
        verify: hash the files again, whatever their modification time says.

    Raises:
        DataError: sources are missing or shared, too many rows are faulty, rows are overlong or duplicates under
            ``error``, no row is left to train on, or the cache cannot be written.
    """
    sources = resolve(recipe)
    hashes = SourceHashes(cache_root, notify)
    stamps = {path: stamp(path) for source in sources for path, _ in source.files}
    digests = {path: hashes.of(path, verify=verify) for path in stamps}
    key = cache_key(recipe, renderer, context, sources, digests)
    with writing(cache_root):
        target = cache_root / key
        for name in sweep(cache_root, is_shared=True):
            notify(f"removed the leftover {name} of an unfinished preparation")
        if (cached := _open_or_clear(target, notify)) is not None:
            hashes.save()
            notify(f"using cached tokens {key[:12]}: {cached.ledger.trained:,} training rows")
            return cached
        try:
            with new_folder(target) as folder:
                Builder(recipe, renderer, context, folder, notify).build(sources, key)
                _check_unchanged(sources, stamps)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (target / META).exists():
                raise
            notify(f"another process prepared the same tokens {key[:12]} meanwhile; using them")
        hashes.save()
        try:
            return open_prepared(target)
        except TornStore as error:
            raise DataError(
                f"the tokens cannot be read back: {error}",
                where=str(target),
                hint="check the disk; TUNESMITH_CACHE names another",
            ) from error


def load_cached(recipe: Recipe, renderer: RowRenderer, context: int, cache_root: Path) -> Prepared | None:
    """The prepared data where it is in the cache whole, without building or writing anything.

    None as well where more than 64 MiB of source files would have to be hashed to know.

    Raises:
        DataError: a source is missing.
    """
    sources = resolve(recipe)
    hashes = SourceHashes(cache_root, lambda _: None)
    paths = [path for source in sources for path, _ in source.files]
    unknown = [path for path in paths if hashes.shortcut(path) is None]
    if sum(stamp(path)[0] for path in unknown) > _HASH_UNASKED_BYTES:
        return None
    key = cache_key(recipe, renderer, context, sources, {path: hashes.of(path) for path in paths})
    try:
        return open_prepared(cache_root / key)
    except (TornStore, OSError):
        return None


def source_files(recipe: Recipe, cache_root: Path) -> dict[str, dict[str, int | str]]:
    """Name of each data file, as it is shown -> ``bytes`` and ``sha256``.

    Raises:
        DataError: a source is missing.
    """
    hashes = SourceHashes(cache_root, lambda _: None)
    files = [item for source in resolve(recipe) for item in source.files]
    return {shown: {"bytes": stamp(path)[0], "sha256": hashes.of(path)} for path, shown in files}


def _open_or_clear(target: Path, notify: Notify) -> Prepared | None:
    """Open the cached folder; a torn one is removed and said."""
    if not target.exists():
        return None
    try:
        return open_prepared(target, verify=True)
    except TornStore as error:
        notify(f"the cached tokens {target.name[:12]} are torn ({error}); building them anew")
    with suppress(FileNotFoundError):
        remove_folder(target)
    return None


def _check_unchanged(sources: Sequence[SourceFiles], stamps: dict[Path, tuple[int, int]]) -> None:
    """Tokens of a file that changed while it was read must not be filed under the hash taken before."""
    for source in sources:
        for path, shown in source.files:
            if stamp(path) != stamps[path]:
                raise DataError(
                    "the file changed while it was read", where=shown, hint="start again when it is complete"
                )
