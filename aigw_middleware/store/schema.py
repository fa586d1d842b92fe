"""The schema of the records, as the steps that lead to it."""

from __future__ import annotations

MIGRATIONS = (
    (
        """
        CREATE TABLE keys (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            public_id TEXT NOT NULL UNIQUE,
            digest BLOB NOT NULL,
            old_digest BLOB,
            old_until INTEGER,
            name TEXT NOT NULL,
            description TEXT NOT NULL,
            metadata TEXT NOT NULL,
            endpoint_id TEXT,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            expires_at INTEGER,
            disabled INTEGER NOT NULL,
            limits TEXT NOT NULL,
            models TEXT,
            networks TEXT NOT NULL,
            deleted_at INTEGER
        ) STRICT
        """,
        """
        CREATE TABLE provider_keys (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            public_id TEXT NOT NULL UNIQUE,
            provider TEXT NOT NULL,
            description TEXT NOT NULL,
            metadata TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            disabled INTEGER NOT NULL,
            redacted TEXT NOT NULL,
            master TEXT NOT NULL,
            wrapped BLOB NOT NULL,
            sealed BLOB NOT NULL,
            deleted_at INTEGER
        ) STRICT
        """,
        """
        CREATE TABLE audit (
            number INTEGER PRIMARY KEY,
            at INTEGER NOT NULL,
            actor TEXT NOT NULL,
            origin TEXT NOT NULL,
            action TEXT NOT NULL,
            record TEXT NOT NULL,
            changes TEXT NOT NULL,
            mark BLOB NOT NULL
        ) STRICT
        """,
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
        "CREATE INDEX provider_keys_of ON provider_keys (provider, number DESC)",
    ),
)
"""Each step from an empty database to the present schema, as statements; the version counts them.

A deleted record keeps its number, its public id and the time: its id is never given again, and a
page that begins at it still knows where. Times are microseconds since 1970 (UTC), lists are JSON.
"""
