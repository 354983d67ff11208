"""Rows H and B of the bypass catalogue against real receivers, each layer alone, and with none: then bytes arrive.

The attempts are of root in the bottle, and of a user who kept NET_RAW and NET_ADMIN. What the default user gets, with
all layers on, is in test_bypass_kernel.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.adversarial.conftest import Told
from tests.adversarial.layer_rows import ADMIN, ROWS, Admin, Row
from tests.adversarial.layers import GOOD_PORT, OWN4, OWN6, Alone, Layer, Placement, alone
from tests.support.nf_lab import WEB4, WEB6, until

pytestmark = pytest.mark.adversarial


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[Layer, Alone]]:
    """A host for each layer; on NONE nothing is left of any."""
    with contextlib.ExitStack() as stack:
        yield {layer: stack.enter_context(alone(layer)) for layer in Layer}


def arrives(lab: Alone, row: Row | Admin, placement: Placement = Placement.ROOT) -> int:
    before = lab.received(row.to)
    if isinstance(row, Admin):
        lab.tries_unanswered(row.words, placement)
    else:
        lab.tries(row.words, placement)
    return lab.received(row.to) - before


@pytest.mark.parametrize("layer", [Layer.HOST_NFT, Layer.BOTTLE_NFT], ids=str)
def test_what_is_allowed_passes_the_layer(labs: dict[Layer, Alone], layer: Layer) -> None:
    """A layer that lets nothing pass would hold everything."""
    for placement in Placement:
        for address in (WEB4, WEB6):
            assert labs[layer].tries(("tcp", address, "443"), placement) == "reached"
            assert labs[layer].tries(("udp", address, str(GOOD_PORT)), placement) == "reached"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_layer_alone(labs: dict[Layer, Alone], record: Told, record_unclaimed: Told, row: Row) -> None:
    until(
        lambda: arrives(labs[Layer.NONE], row)
    )  # the attempt works: what does not arrive elsewhere is the layer's doing
    leaks = {}
    for layer in (Layer.HOST_NFT, Layer.ROUTING, Layer.BOTTLE_NFT):
        for placement in Placement if layer is not Layer.ROUTING else [Placement.ROOT]:
            received = arrives(labs[layer], row, placement)
            claimed = layer in row.held_by
            (record if claimed else record_unclaimed)(row.technique, placement.value, layer.value, received)
            if received and claimed:
                leaks[layer.value, placement.value] = received
    assert not leaks


@pytest.mark.parametrize("row", ADMIN, ids=str)
def test_root_in_the_bottle_changes_its_namespace(labs: dict[Layer, Alone], record: Told, row: Admin) -> None:
    got = {}
    for layer in (Layer.NONE, Layer.HOST_NFT, Layer.ROUTING):
        lab = labs[layer]
        lab.shell(row.first)
        try:
            got[layer] = until(lambda: arrives(lab, row)) if layer is Layer.NONE else arrives(lab, row)  # noqa: B023
        finally:
            lab.shell(row.undo)
        if layer is not Layer.NONE:
            record(f"CAP_NET_ADMIN: {row.technique}", Placement.ROOT.value, layer.value, got[layer])
    del got[Layer.NONE]
    assert set(got.values()) == {0}


@pytest.mark.parametrize(
    ("origin", "name", "held_by"),
    [
        ("world", "the world", (Layer.HOST_NFT, Layer.BOTTLE_NFT)),
        ("am-17", "another bottle", (Layer.HOST_NFT, Layer.ROUTING, Layer.BOTTLE_NFT)),
        ("", "the host", (Layer.BOTTLE_NFT,)),
    ],
)
def test_new_connections_from_elsewhere(
    labs: dict[Layer, Alone], record: Told, record_unclaimed: Told, origin: str, name: str, held_by: tuple[Layer, ...]
) -> None:
    got = {}
    for layer, lab in labs.items():
        for to in (OWN4, OWN6):
            before = lab.entered(to)
            lab.knocks(origin, to)
            if layer is Layer.NONE:
                until(lambda: lab.entered(to) > before)  # noqa: B023
            received = got[layer, to] = lab.entered(to) - before
            if layer is not Layer.NONE:
                kind = "v6" if ":" in to else "v4"
                tell = record if layer in held_by else record_unclaimed
                tell(f"inbound from {name} {kind}", "outside the bottle", layer.value, received)
    assert not {key: received for key, received in got.items() if received and key[0] in held_by}
