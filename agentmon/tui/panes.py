"""What stands over the dashboard for a moment: a question with yes or no, one with an answer, the list of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

_STYLE = """
    { align: center middle; }
    Vertical { width: 64; max-width: 90%; height: auto; border: round $primary; padding: 1 2; background: $surface; }
    Horizontal { height: auto; align-horizontal: right; }
"""


class Confirm(ModalScreen[bool]):
    """y or Enter on the button does it; n and Escape do not."""

    CSS = f"Confirm {_STYLE}"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "yes"), Binding("n,escape", "no", "no"),
    ]  # fmt: skip

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, markup=False)
            with Horizontal():
                yield Button("no (n)", id="no")
                yield Button("yes (y)", id="yes", variant="error")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_yes(self) -> None:
        self.dismiss(True)

    def action_no(self) -> None:
        self.dismiss(False)


class Ask(ModalScreen[str]):
    """Enter gives the answer, Escape none."""

    CSS = f"Ask {_STYLE}"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "no", "cancel")]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, markup=False)
            yield Input()

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())

    def action_no(self) -> None:
        self.dismiss("")


class Help(ModalScreen[None]):
    """Any key closes it."""

    CSS = f"Help {_STYLE}"

    def __init__(self, keys: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._keys = keys

    def compose(self) -> ComposeResult:
        lines = [f"{key:>6}  {what}" for key, what in self._keys]
        legend = "BUDGET  █ used  ▒ held  · left, of the budget that has the least left"
        with Vertical():
            yield Static("\n".join([*lines, "", legend, "", "any key closes this"]), markup=False)

    def on_key(self) -> None:
        self.dismiss(None)
