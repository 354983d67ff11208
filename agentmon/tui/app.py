"""The dashboard in a terminal: the only file, with panes.py, that knows textual.

Asking happens in a worker thread, at most one round at a time; a row is redrawn only where its cells changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar

from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.theme import Theme
from textual.widgets import DataTable, Footer, Input, RichLog, Static, TabbedContent, TabPane

from agentmon.render.events import paragraph
from agentmon.render.top import HEAD, cells, short
from agentmon.render.words import duration, printable
from agentmon.tui.model import Line, Model, Order, Raw, View
from agentmon.tui.panes import Ask, Confirm, Help

EVERY_S = 2.0
_TAIL = 200
_CONTRAST = Theme(
    "contrast", primary="#ffff00", secondary="#00ffff", accent="#ffff00", warning="#ffff00", error="#ff8080",
    success="#80ff80", foreground="#ffffff", background="#000000", surface="#000000", panel="#000000", dark=True,
)  # fmt: skip
_VERBS = {"cut": "cut off", "freeze": "freeze", "resume": "resume", "kill": "kill"}


class Top(App[None]):
    """:param look: one round of asking. :param act: an operation → "" or why not; both may wait."""

    TITLE = "agentmon top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; padding: 0 1; background: $panel; }
    #problem { height: auto; max-height: 2; padding: 0 1; color: $error; text-style: bold; display: none; }
    #bottles { height: 2fr; }
    #below { height: 1fr; min-height: 6; }
    #search { dock: bottom; display: none; }
    RichLog { scrollbar-size: 1 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "operate('cut')", "cut"),
        Binding("f", "operate('freeze')", "freeze"),
        Binding("r", "operate('resume')", "resume"),
        Binding("k", "operate('kill')", "kill"),
        Binding("b", "budget", "budget"),
        Binding("a", "decide('approve')", "approve"),
        Binding("x", "decide('reject')", "reject"),
        Binding("slash", "search", "search", key_display="/"),
        Binding("s", "sort", "sort"),
        Binding("p", "pause", "pause"),
        Binding("h", "contrast", "contrast", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, look: Callable[[], Raw], act: Callable[..., str], model: Model | None = None) -> None:
        super().__init__()
        self.model = model or Model()
        self._look, self._act = look, act
        self._raw = Raw(0)
        self.shown = View((), (), (), 0)
        self.order = Order.NAME
        self._wanted = ""
        self._paused = False
        self._drawn: dict[str, tuple[str, ...]] = {}
        self._lines: dict[str, Line] = {}
        self._written = 0

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem")
        yield DataTable(id="bottles", cursor_type="row", zebra_stripes=False)
        with TabbedContent(id="below"):
            with TabPane("Events", id="events"):
                yield RichLog(id="log", max_lines=_TAIL, wrap=True, markup=False, highlight=False)
            with TabPane("Requests", id="requests"):
                yield DataTable(id="live", cursor_type="none")
            with TabPane("Approvals", id="approvals"):
                yield DataTable(id="waiting", cursor_type="row")
        yield Input(id="search", placeholder="part of a name, a state or a command; Enter keeps it, Escape clears it")
        yield Footer()

    def on_mount(self) -> None:
        self.register_theme(_CONTRAST)
        self._table("#bottles").add_columns(*HEAD)
        self._table("#live").add_columns("BOTTLE", "PROVIDER", "MODEL", "HELD")
        self._table("#waiting").add_columns("ID", "LEFT", "BOTTLE", "WHERE", "FOUND BY", "AROUND IT")
        self._table("#bottles").focus()
        self.set_interval(EVERY_S, self.refresh_view)
        self.refresh_view()

    def _table(self, name: str) -> DataTable[str]:
        return self.query_one(name, DataTable)

    # ── asking and drawing ──

    @work(thread=True, exclusive=True, group="look")
    def refresh_view(self) -> None:
        if not self._paused:
            raw = self._look()
            self.call_from_thread(self.take, raw)

    def take(self, raw: Raw) -> None:
        """Draw one round."""
        self._raw = raw
        self.draw()

    def draw(self) -> None:
        view = self.shown = self.model.view(self._raw, self.order, self._wanted)
        self._head(view)
        self._bottles(view)
        self._fill("#live", [(r.bottle, r.provider, r.model, short(r.held)) for r in view.live])
        self._fill("#waiting", [_proposal(row, view.at_ns) for row in view.approvals])
        self._tail()

    def _head(self, view: View) -> None:
        refused = sum(line.refused for line in view.lines if line.bottle)
        parts = [f"{view.bottles} bottles", f"{len(view.live)} requests", f"{short(refused)} refused"]
        if self._wanted:
            parts.insert(1, f"only {self._wanted!r} ({view.hidden} hidden)")
        if view.approvals:
            parts.append(f"{len(view.approvals)} WAIT FOR APPROVAL")
        parts.append(f"by {self.order.value}")
        if self._paused:
            parts.append("PAUSED")
        self.query_one("#head", Static).update(printable(" · ".join(parts)))
        problem = self.query_one("#problem", Static)
        said = "; ".join(p for p in (view.problem, view.blind) if p)
        problem.display = bool(said)
        problem.update(printable(said))

    def _bottles(self, view: View) -> None:
        table = self._table("#bottles")
        rows = {line.key: cells(line) for line in view.lines}
        self._lines = {line.key: line for line in view.lines}
        if list(rows) != list(self._drawn):
            at = self._key()
            table.clear()
            for key, row in rows.items():
                table.add_row(*row, key=key)
            if at in rows:
                table.move_cursor(row=list(rows).index(at), scroll=False)
        else:
            columns = list(table.columns)
            for key, row in rows.items():
                for column, was, now in zip(columns, self._drawn[key], row, strict=True):
                    if was != now:  # measuring a column costs far more than drawing a cell
                        wider = len(now) > table.columns[column].content_width
                        table.update_cell(key, column, now, update_width=wider)
        self._drawn = rows

    def _fill(self, name: str, rows: list[tuple[str, ...]]) -> None:
        table = self._table(name)
        there = [tuple(table.get_row_at(i)) for i in range(table.row_count)]
        rows = [tuple(printable(cell) for cell in row) for row in rows]
        if there == rows:
            return
        at = table.cursor_row
        table.clear()
        table.add_rows(rows)
        if rows:
            table.move_cursor(row=min(at, len(rows) - 1))

    def _tail(self) -> None:
        log = self.query_one("#log", RichLog)
        new = list(self.model.events)[-(self.model.count - self._written) :] if self.model.count > self._written else []
        self._written = self.model.count
        for event in [e for e in new if e.get("kind") != "usage"][-_TAIL:]:  # usage is in the rows above
            log.write(paragraph(event).rstrip("\n"))

    # ── what a person does ──

    def _key(self) -> str:
        table = self._table("#bottles")
        if not table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value or "")

    def _chosen(self) -> str:
        line = self._lines.get(self._key())
        if line is None or not line.bottle:
            self.notify("choose a bottle first", severity="warning")
            return ""
        return line.bottle

    def action_operate(self, verb: str) -> None:
        bottle = self._chosen()
        if bottle:
            self.push_screen(Confirm(f"{_VERBS[verb]} {bottle}?"), lambda yes: self._do(yes, verb, bottle=bottle))

    def action_budget(self) -> None:
        bottle = self._chosen()
        if bottle:
            line = self._lines[self._key()]
            of = f" (now {line.meter.limit:,}, {line.meter.used:,} used)" if line.meter.limit else ""
            question = f"New budget of {bottle} in all{of}: TOKENS or PROVIDER=TOKENS"
            self.push_screen(Ask(question), lambda said: self._do(bool(said), "budget_set", bottle=bottle, budget=said))

    def action_decide(self, verb: str) -> None:
        if not self.shown.approvals:
            self.notify("nothing waits for a decision")
            return
        self.query_one(TabbedContent).active = "approvals"
        row = self.shown.approvals[min(self._table("#waiting").cursor_row, len(self.shown.approvals) - 1)]
        question = f"{verb} {row['id']}: {row.get('detector', '')} to {row.get('host', '')}. Why?"
        self.push_screen(Ask(printable(question)), lambda said: self._do(bool(said), verb, id=row["id"], reason=said))

    def _do(self, yes: bool | None, op: str, **args: Any) -> None:
        if yes:
            self._ask(op, args)

    @work(thread=True)
    def _ask(self, op: str, args: Mapping[str, Any]) -> None:
        why = self._act(op, **args)
        if why:
            self.call_from_thread(self.notify, printable(why), title="not done", severity="error", timeout=8)
        else:
            self.call_from_thread(self.notify, f"{op.replace('_', ' ')}: done", timeout=3)
        self.call_from_thread(self.refresh_view)

    def action_search(self) -> None:
        field = self.query_one("#search", Input)
        field.display = True
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value
        self.draw()

    def on_input_submitted(self) -> None:
        self.query_one("#search", Input).display = False
        self._table("#bottles").focus()

    def on_key(self, event: Any) -> None:
        field = self.query_one("#search", Input)
        if event.key == "escape" and field.display:
            field.value = ""
            field.display = False
            self._table("#bottles").focus()

    def action_sort(self) -> None:
        every = list(Order)
        self.order = every[(every.index(self.order) + 1) % len(every)]
        self.draw()

    def action_pause(self) -> None:
        self._paused = not self._paused
        self.draw()

    def action_contrast(self) -> None:
        self.theme = "textual-dark" if self.theme == "contrast" else "contrast"

    def action_help(self) -> None:
        self.push_screen(
            Help([(b.key_display or b.key, b.description) for b in self.BINDINGS if isinstance(b, Binding)])
        )


def _proposal(row: Mapping[str, Any], at_ns: int) -> tuple[str, ...]:
    ends_s = datetime.fromisoformat(str(row["until"])[:19] + "+00:00").timestamp()
    left_ns = max(0, int(ends_s) * 1_000_000_000 - at_ns)
    where = f"{row.get('method', '')} {row.get('host', '')}{row.get('path', '')}"
    return (
        str(row["id"]), duration(left_ns) if left_ns else "-", str(row["bottle"]), where[:40],
        str(row.get("detector", "")), str(row.get("context", ""))[:60],
    )  # fmt: skip
