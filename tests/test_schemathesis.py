"""The management API against its own document, by schemathesis over a real socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aigw_middleware import ManagementAPI, open_store
from aigw_middleware.testing import serving


def test_the_document_is_kept(tmp_path: Path) -> None:
    """Some hundred made-up requests: no 5xx, no answer outside the schema, none without a token."""
    store = open_store(f"sqlite:///{tmp_path}/aigw.db", secret="a master secret for the tests")
    store.keys.create(name="seed")
    # 413 refuses as well as any other; by default it does not count.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\nnegative_data_rejection.expected-statuses = ["4xx"]\n'
    )
    with serving(ManagementAPI(store, "admin-token")) as url:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
                "--header", "Authorization: Bearer admin-token", "--max-examples", "25",
                # Not all that a value must be can be said in a schema (networks, limits, ids).
                "--exclude-checks", "positive_data_acceptance",
                "--no-color", "--generation-database", "none", "--warnings", "off",
            ],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "generated" in done.stdout
