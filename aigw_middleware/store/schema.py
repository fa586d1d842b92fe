"""The schema of the records, as the steps that lead to it."""

from __future__ import annotations

from .database import Migrations

MIGRATIONS: Migrations = (
    (
        """
        CREATE TABLE keys (
            number {serial},
            public_id TEXT NOT NULL UNIQUE,
            digest {bytes} NOT NULL,
            old_digest {bytes},
            old_until {integer},
            name TEXT NOT NULL,
            description TEXT NOT NULL,
            metadata TEXT NOT NULL,
            endpoint_id TEXT,
            created_at {integer} NOT NULL,
            updated_at {integer} NOT NULL,
            expires_at {integer},
            disabled {integer} NOT NULL,
            limits TEXT NOT NULL,
            models TEXT,
            networks TEXT NOT NULL,
            deleted_at {integer}
        ) {table}
        """,
        """
        CREATE TABLE provider_keys (
            number {serial},
            public_id TEXT NOT NULL UNIQUE,
            provider TEXT NOT NULL,
            description TEXT NOT NULL,
            metadata TEXT NOT NULL,
            created_at {integer} NOT NULL,
            updated_at {integer} NOT NULL,
            disabled {integer} NOT NULL,
            redacted TEXT NOT NULL,
            master TEXT NOT NULL,
            wrapped {bytes} NOT NULL,
            sealed {bytes} NOT NULL,
            deleted_at {integer}
        ) {table}
        """,
        """
        CREATE TABLE audit (
            number {integer} PRIMARY KEY,
            at {integer} NOT NULL,
            actor TEXT NOT NULL,
            origin TEXT NOT NULL,
            action TEXT NOT NULL,
            record TEXT NOT NULL,
            changes TEXT NOT NULL,
            mark {bytes} NOT NULL
        ) {table}
        """,
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) {table}",
        "CREATE INDEX provider_keys_of ON provider_keys (provider, number DESC)",
    ),
    (
        """
        CREATE TABLE admin_tokens (
            number {serial},
            public_id TEXT NOT NULL UNIQUE,
            digest {bytes} NOT NULL,
            name TEXT NOT NULL,
            role TEXT NOT NULL,
            created_at {integer} NOT NULL,
            deleted_at {integer}
        ) {table}
        """,
    ),
    ("ALTER TABLE keys ADD COLUMN active TEXT NOT NULL DEFAULT '[]'",),
)
"""The version of a schema is the number of its steps.

A deleted record keeps its number, its public id and the time: its id is never given again, and a
page that begins at it still knows where. Times are microseconds since 1970 (UTC), lists are JSON.
"""

TABLES = ("keys", "provider_keys", "admin_tokens", "audit", "meta")
"""The tables of the records, as the steps leave them."""
