"""The store's file: SQLite in WAL mode, and what is said when the disk will not have it.

Decides what is durable and which error tells of what is not. A transaction is in the file, whole, when `write` returns; a process
that is killed at any moment loses nothing of it (the kernel has it). A power cut may lose the last transactions, for WAL with
`synchronous = NORMAL` syncs only at checkpoints, but leaves the file consistent: an older state, never half of one.
Knows rows, not objects. Spec: sqlite.org/wal.html, sqlite.org/rescode.html.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator

from emu.errors import ApiError, PodwireError

Key = tuple[str, str, str]  # resource, namespace, name

BUSY_PATIENCE = 1.0  # seconds for somebody who looks into the file with sqlite3
_PARTS = ("", "-wal")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, object TEXT NOT NULL,
                                    PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revision (number INTEGER NOT NULL);
"""
_AGAIN = "nothing of the request was kept"
_FAILURES = {  # primary result code: HTTP status, reason, what is wrong and what to do
    sqlite3.SQLITE_FULL: (507, "InsufficientStorage", "cannot grow, its disk is full", "free some space and ask again"),
    sqlite3.SQLITE_READONLY: (500, "InternalError", "cannot be written, it is read-only", "make it writable and ask again"),
    sqlite3.SQLITE_BUSY: (503, "ServiceUnavailable", "is locked by another program", "end that and ask again"),
    sqlite3.SQLITE_CORRUPT: (500, "InternalError", "is damaged", "save what is still served (podwire get -o yaml), then start anew"),
    sqlite3.SQLITE_NOTADB: (500, "InternalError", "is damaged", "save what is still served (podwire get -o yaml), then start anew"),
}
_OTHERWISE = (500, "InternalError", "cannot be written", "see to its disk and ask again")


class StoreFile:
    """One open file; `path` may be ":memory:". PodwireError naming it if it cannot be opened or read."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.connection = sqlite3.connect(path, timeout=BUSY_PATIENCE, isolation_level=None, check_same_thread=False)
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            self.connection.executescript(_SCHEMA)
            row = self.connection.execute("SELECT number FROM revision").fetchone()
            if row is None:
                self.connection.execute("INSERT INTO revision VALUES (0)")
            self.revision = int(row[0]) if row else 0
        except sqlite3.Error as error:
            raise self.unreadable(str(error)) from error
        self._identity = self._identities()

    def unreadable(self, why: str) -> PodwireError:
        return PodwireError(
            f"the store {self.path} cannot be read: {why}; put back a good copy, or remove it, -wal and -shm too, to begin without objects"
        )

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Resource, namespace, name and JSON of each object."""
        try:
            yield from self.connection.execute("SELECT resource, namespace, name, object FROM objects")
        except sqlite3.Error as error:
            raise self.unreadable(str(error)) from error

    def write(self, gone: Iterable[Key], kept: Iterable[tuple[str, str, str, str]], revision: int) -> None:
        """All of it in one transaction, or ApiError and nothing."""
        self._check_place()
        file = self.connection
        try:
            file.execute("BEGIN IMMEDIATE")
            file.executemany("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?", gone)
            file.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", kept)
            file.execute("UPDATE revision SET number = ?", (revision,))
            file.execute("COMMIT")
        except BaseException as error:
            if file.in_transaction:  # a full disk has rolled it back already
                file.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._refusal(error) from error
            raise

    def _refusal(self, error: sqlite3.Error) -> ApiError:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        code, reason, what, remedy = _FAILURES.get(primary, _OTHERWISE)
        return ApiError(code, reason, f"the store {self.path} {what} ({error}): {_AGAIN}; {remedy}")

    def _check_place(self) -> None:
        """What is written to a file that has lost its name is lost with its process: refuse it while it can still be told."""
        if self._identities() != self._identity:
            remedy = "put it back, or go on with what is there now: podwire fault controller restart"
            raise ApiError(500, "InternalError", f"the store {self.path} was removed or replaced while in use: {_AGAIN}; {remedy}")

    def _identities(self) -> list[tuple[int, int] | None]:
        if self.path == ":memory:":
            return []
        return [_identity(self.path + part) for part in _PARTS]

    def close(self) -> None:
        """Close it; all that was written is in it."""
        self.connection.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
