"""Which pages of a catalog hold something: wiping one of the others is no damage."""

from pathlib import Path

from covector_server.check import lmdb_pages


def used_pages(path: Path) -> list[int]:
    """The pages that a walk from the newest root comes by, the two roots included."""
    file = lmdb_pages.PageFile(path)
    one = lmdb_pages._Walk(file, lmdb_pages._metas(file, lmdb_pages.PageReport(), None)[0], lambda: None)
    one.run()
    file.close()
    return [page for page, state in enumerate(one._state) if state == 1]
