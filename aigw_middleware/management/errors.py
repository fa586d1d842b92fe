"""The errors of the management API."""

from __future__ import annotations

from typing import Any


class APIError(Exception):
    """An answer that says what is wrong.

    Args:
        status: the HTTP status.
        code: what went wrong, in capitals: the answer's `error_code` is `ERR_AIGW_` and this.
        message: one sentence for people.
        field: the field of the body or the query that is wrong; None where none is.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = f"ERR_AIGW_{code}"
        self.message = message
        self.field = field
        self.headers = headers

    def document(self, request_id: str) -> dict[str, Any]:
        """Return the body of the answer."""
        details = {"operation_id": request_id}
        if self.field is not None:
            details["field"] = self.field
        return {
            "error_code": self.code,
            "status_code": self.status,
            "msg": self.message,
            "details": details,
        }


def not_found(id_: str) -> APIError:
    """Return the error for a record that is not there; what was asked for is not repeated."""
    return APIError(404, "NOT_FOUND", "There is no such record.")


def out_of_bounds(error: ValueError) -> APIError:
    """Return the error for a value that the store refused: its text begins with the field."""
    field, _, message = str(error).partition(": ")
    return APIError(422, "INVALID_VALUE", f"{field}: {message}", field=field)
