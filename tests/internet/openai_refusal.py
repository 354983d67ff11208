"""The error object of the OpenAI API."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self._param, self._code = param, code
        self._kind = kind or ("invalid_request_error" if status < 500 and status != 429 else "server_error")

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self._kind, "param": self._param, "code": self._code}
        return {"error": error}


def missing(name: str) -> Refusal:
    return Refusal(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def unknown(name: str) -> Refusal:
    return Refusal(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
