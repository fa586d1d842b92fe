"""The audit: who did what, in a chain that shows what was done to it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aigw_middleware import ManagementAPI, open_store
from aigw_middleware.cli.root import aigw
from aigw_middleware.store import Store, audit

from .support import make_environ, send

SECRET = "a master secret for the tests"
PROVIDER_SECRET = "sk-live-Qx7Lm2Vt9Rb4Zc8Nk1"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url, secret=SECRET)


def five_rows(store: Store) -> None:
    for number in range(5):
        store.keys.create(name=str(number))


def tampered(store: Store, *statements: str) -> None:
    def work(connection: Any) -> None:
        mark = (
            connection.execute("SELECT mark FROM audit WHERE number = 3")
            .fetchone()[0]
            .hex()
            .upper()
        )
        for statement in statements:
            connection.execute(statement.replace("MARK", mark))

    store._database.write(work)


def test_every_change_leaves_a_row_without_secrets(store: Store) -> None:
    """Create, update, rotate and delete of both kinds of records, with the fields that were set."""
    key, token = store.keys.create(name="web", limits=["5/min"])
    store.keys.update(key.id, disabled=True)
    _, rotated = store.keys.rotate(key.id, grace=5)
    store.keys.delete(key.id)
    store.keys.delete(key.id)
    provider = store.provider_keys.create(provider="openai", secret=PROVIDER_SECRET)
    store.provider_keys.rotate(provider.id, secret=PROVIDER_SECRET)
    rows = list(reversed(store.audit.list()))
    assert [(row.number, row.action, row.record) for row in rows] == [
        (1, "create", key.id), (2, "update", key.id), (3, "rotate", key.id),
        (4, "delete", key.id), (5, "create", provider.id), (6, "rotate", provider.id),
    ]  # fmt: skip
    assert rows[0].changes["name"] == "web"
    assert rows[1].changes == {"disabled": 1}
    assert rows[2].changes == {"grace": 5}
    text = repr(rows)
    for secret in (token, rotated, PROVIDER_SECRET):
        assert secret[-20:] not in text
    assert store.audit.verify() == []


def test_it_says_who_and_from_where(store: Store, url: str) -> None:
    """The library, the command's user, or the admin of the API with the address."""
    store.keys.create()
    head = {"HTTP_AUTHORIZATION": "Bearer admin", "CONTENT_TYPE": "application/json"}
    environ = make_environ("/ai_gateway_api_keys", body=b"{}", REMOTE_ADDR="192.0.2.7", **head)
    send(ManagementAPI(store, "admin"), environ)
    done = CliRunner(env={"AIGW_SECRET": SECRET}).invoke(aigw, ["keys", "create", "--store", url])
    assert done.exit_code == 0
    command, api, library = store.audit.list()
    assert (library.actor, library.origin) == ("library", "")
    assert (api.actor, api.origin) == ("api:admin", "192.0.2.7")
    assert command.actor.startswith("command:")


def test_a_change_that_fails_leaves_no_row(store: Store) -> None:
    """The row stands in the same transaction as the change."""
    with pytest.raises(KeyError):
        store.keys.update("aigk_none", name="x")
    with pytest.raises(ValueError, match="limits"):
        store.keys.create(limits=["x"])
    assert store.audit.list() == []
    assert store.audit.verify() == []


TAMPERING = [
    pytest.param(["UPDATE audit SET actor = 'nobody' WHERE number = 3"], "row 3 was changed", id="changed"),
    pytest.param(["DELETE FROM audit WHERE number = 3"], "rows 3 to 3 are missing", id="removed"),
    pytest.param(
        ["UPDATE audit SET number = 99 WHERE number = 2", "UPDATE audit SET number = 2 WHERE number = 3",
         "UPDATE audit SET number = 3 WHERE number = 99"], "row 2 was changed", id="reordered",
    ),
    pytest.param(["DELETE FROM audit WHERE number > 3"], "rows 4 to 5 are missing at the end", id="truncated"),
    pytest.param(["DELETE FROM audit"], "rows 1 to 5 are missing at the end", id="emptied"),
    pytest.param(["DELETE FROM meta WHERE name = 'audit_head'"], "the head is missing", id="no head"),
    pytest.param(
        ["UPDATE meta SET value = '3:MARK:00' "
         "WHERE name = 'audit_head'", "DELETE FROM audit WHERE number > 3"],
        "the head was changed", id="truncated with its head",
    ),
    pytest.param(
        ["INSERT INTO audit SELECT 6, at, actor, origin, action, record, changes, mark FROM audit "
         "WHERE number = 5"], "row 6 was changed", id="added",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "told"), TAMPERING)
def test_what_was_done_to_the_chain_is_found(
    store: Store, tmp_path: Path, statements: list[str], told: str
) -> None:
    """A row that was changed, removed, moved, added or cut off is told by its number."""
    five_rows(store)
    assert store.audit.verify() == []
    tampered(store, *statements)
    assert told in store.audit.verify()


def test_a_database_that_was_put_back_is_found_by_a_head_kept_elsewhere(
    store: Store, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever restores an old copy restores its head; a later head, from the log, tells."""
    caplog.set_level(logging.INFO, "aigw_middleware.audit")
    five_rows(store)
    store.backup(str(tmp_path / "old"))
    store.keys.create(name="later")
    head = store.audit.head()
    assert head in caplog.text
    assert store.audit.verify(head) == []
    old = open_store(f"sqlite:///{tmp_path}/old", secret=SECRET)
    assert old.audit.verify() == []
    assert old.audit.verify(head) == ["row 6 is not the one of the head that was kept"]
    with pytest.raises(ValueError, match=r"^head: "):
        store.audit.verify("x")


def test_the_chain_outlives_a_change_of_the_master_secret(store: Store, url: str) -> None:
    """Its key is a sealed record of its own, which is sealed anew."""
    five_rows(store)
    store.close()
    again = open_store(url, secret="the new secret of this store")
    again.rekey(SECRET)
    again.rekey(SECRET)
    again.keys.create()
    assert again.audit.verify() == []


def test_a_key_can_be_revoked_without_the_secret_and_it_shows(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revocation never waits for a secret; nobody vouches for the row that it leaves."""
    monkeypatch.delenv("AIGW_SECRET", raising=False)
    key, token = store.keys.create()
    store.close()
    plain = open_store(url)
    assert plain.keys.delete(key.id)
    assert plain.keys.verify(token) is None
    plain.close()
    again = open_store(url, secret=SECRET)
    again.keys.create()
    assert again.audit.verify() == ["row 2 was written without AIGW_SECRET; nobody vouches for it"]


def test_without_a_secret_the_chain_still_finds_accidents(
    url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """The key lies in the database then; with a secret another one begins, and it is told."""
    monkeypatch.delenv("AIGW_SECRET", raising=False)
    plain = open_store(url)
    five_rows(plain)
    assert plain.audit.verify() == []
    plain.close()
    sealed = open_store(url, secret=SECRET)
    assert sealed.audit.verify() == [
        "the key of the audit is not sealed; anybody could have written the rows"
    ]
    sealed.keys.create()
    before = "rows 1 to 5 were written before there was AIGW_SECRET"
    assert sealed.audit.verify() == [before]
    tampered(sealed, "UPDATE audit SET record = 'x' WHERE number = 1")
    assert sealed.audit.verify() == [before, "row 1 was changed"]


def test_the_command_and_the_api_show_it(store: Store, url: str, tmp_path: Path) -> None:
    """`aigw audit list|verify` and `GET /audit`, page by page; 1 where the chain is broken."""
    five_rows(store)
    run = CliRunner(env={"AIGW_SECRET": SECRET, "AIGW_STORE": url}).invoke
    listed = json.loads(run(aigw, ["audit", "list", "--page-size", "2", "--json"]).stdout)
    assert [row["number"] for row in listed] == [5, 4]
    assert "create" in run(aigw, ["audit", "list", "--before-id", "3"]).stdout
    verified = run(aigw, ["audit", "verify", "--head", store.audit.head()])
    assert verified.exit_code == 0, verified.output
    api = ManagementAPI(store, "admin")
    seen, query = [], "limit=2"
    while query:
        head = {"HTTP_AUTHORIZATION": "Bearer admin", "QUERY_STRING": query}
        page = send(api, make_environ("/audit", **head)).json
        seen += [row["number"] for row in page["audit"]]
        query = (page["next_page_uri"] or "?").partition("?")[2]
    assert seen == [5, 4, 3, 2, 1]
    tampered(store, "DELETE FROM audit WHERE number = 2")
    broken = run(aigw, ["audit", "verify"])
    assert (broken.exit_code, "rows 2 to 2 are missing" in broken.output) == (1, True)


def forged(store: Store, work: Any) -> list[str]:
    store._database.write(work)
    return store.audit.verify()


def test_rows_cannot_be_cut_off_by_a_head_without_the_key(store: Store) -> None:
    """A head that anybody can sign counts only where the last row is one that nobody vouches for."""
    five_rows(store)

    def work(connection: Any) -> None:
        mark = connection.execute("SELECT mark FROM audit WHERE number = 3").fetchone()[0]
        connection.execute("DELETE FROM audit WHERE number > 3")
        audit._put(connection, "audit_head", audit._signed_head(None, 3, mark))

    assert forged(store, work) == ["the head was changed"]


def test_a_key_in_the_clear_is_not_taken_for_the_sealed_one(store: Store) -> None:
    """Who writes the whole chain anew, under a key of his own, is found out."""
    five_rows(store)
    key = bytes(32)

    def work(connection: Any) -> None:
        before = bytes(32)
        rows = connection.execute(f"SELECT {audit._COLUMNS} FROM audit ORDER BY number").fetchall()
        for row in rows:
            before = audit._mark(key, before, tuple(row))
            connection.execute("UPDATE audit SET mark = ? WHERE number = ?", (before, row[0]))
        audit._put(connection, "audit_key", key.hex())
        audit._put(connection, "audit_head", audit._signed_head(key, 5, before))

    unsealed = "the key of the audit is not sealed; anybody could have written the rows"
    assert forged(store, work) == [unsealed]
    store.keys.create()
    assert store.audit.verify() == ["rows 1 to 5 were written before there was AIGW_SECRET"]


def test_an_audit_that_was_wiped_is_missed(store: Store) -> None:
    """Records without a row that tells of them are a finding."""
    five_rows(store)
    assert forged(
        store,
        lambda c: [
            c.execute("DELETE FROM audit"),
            c.execute("DELETE FROM meta WHERE name LIKE 'audit%'"),
        ],
    ) == ["the head is missing"]


def test_a_removed_head_hinders_no_change(store: Store) -> None:
    """A key can be deleted whatever was done to the audit, and the hole is told."""
    five_rows(store)
    key = store.keys.list()[0]
    assert forged(store, lambda c: c.execute("DELETE FROM meta WHERE name = 'audit_head'")) == [
        "the head is missing"
    ]
    assert store.keys.delete(key.id)
    assert store.audit.verify() == []


def test_a_change_that_did_not_happen_logs_no_head(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A head is logged when its row is kept, not before."""
    caplog.set_level(logging.INFO, "aigw_middleware.audit")
    for change in (store.keys.update, store.keys.rotate):
        with pytest.raises(KeyError):
            change(
                "aigk_0000000000000000", **({"name": "x"} if change == store.keys.update else {})
            )
    assert caplog.records == []
    store.keys.create()
    assert len(caplog.records) == 1


def test_a_change_of_the_master_secret_is_told(store: Store, url: str) -> None:
    """`rekey` leaves a row too."""
    store.keys.create()
    store.close()
    again = open_store(url, secret="another secret of this store")
    again.rekey(SECRET)
    assert again.audit.list(limit=1)[0].action == "rekey"
    assert again.audit.verify() == []
