"""The learned map from addresses to names: what it remembers, forgets, asks again; pure, with a server of its own."""

from __future__ import annotations

import threading
from ipaddress import ip_address

import pytest

from agentmon.guard import judge, names, targets


class Server:
    """Answers like a name server whose answers turn: each time the next set."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): sets for name, sets in answers.items()}
        self.asked: list[tuple[str, int]] = []

    def __call__(self, name: str, family: int) -> list[str]:
        self.asked.append((name, family))
        sets = self.answers.get(name)
        if not sets:
            raise OSError(f"no {name}")
        return sets[min(len(self.asked), len(sets)) - 1]


def known(server: Server) -> names.Names:
    return names.Names(server)


def test_an_address_knows_the_names_that_led_to_it():
    server = Server(a_test=[["198.51.100.1", "2001:db8::1"]], b_test=[["198.51.100.1"]])
    map_ = known(server)
    assert [str(a) for a in map_.learn("a.test", 0)] == ["198.51.100.1", "2001:db8::1"]
    map_.learn("b.test", 0)
    assert map_.of(ip_address("198.51.100.1")) == ("a.test", "b.test")
    assert map_.of(ip_address("2001:db8::1")) == ("a.test",)
    map_.learn("a.test", 0)
    assert map_.of(ip_address("198.51.100.1"))[-1] == "a.test"
    assert map_.of(ip_address("198.51.100.2")) == ()


def test_a_name_is_asked_once_while_fresh_by_family():
    server = Server(a_test=[["198.51.100.1"]])
    map_ = known(server)
    assert not map_.fresh("a.test", 2)
    assert map_.addresses("a.test", 2) == map_.addresses("a.test", 2)
    assert map_.fresh("a.test", 2) and not map_.fresh("a.test", 10)
    assert server.asked == [("a.test", 2)]


def test_a_failed_lookup_is_not_fresh(monkeypatch):
    map_ = known(Server())
    assert map_.learn("a.test", 0) == () and not map_.fresh("a.test", 0)
    server = Server(a_test=[["198.51.100.1"]])
    aged = known(server)
    aged.learn("a.test", 0)
    monkeypatch.setattr(names, "FRESH_NS", -1)
    aged.addresses("a.test", 0)
    assert len(server.asked) == 2


def test_a_chase_asks_the_last_names_again_and_not_all_the_time():
    server = Server(a_test=[["198.51.100.1"], ["198.51.100.2"], ["198.51.100.3"]])
    map_ = known(server)
    assert map_.chase() is False
    map_.learn("a.test", 0)
    assert map_.chase() is True
    assert map_.of(ip_address("198.51.100.2")) == ("a.test",)
    assert map_.chase() is False and len(server.asked) == 2
    many = Server(**{f"n{i}_test": [["198.51.100.9"]] for i in range(9)})
    map_ = known(many)
    for i in range(9):
        map_.learn(f"n{i}.test", 0)
    map_.chase()
    assert [name for name, _ in many.asked[9:]] == ["n5.test", "n6.test", "n7.test", "n8.test"]


def test_it_is_bounded(monkeypatch):
    monkeypatch.setattr(names, "MAX_ADDRESSES", 10)
    monkeypatch.setattr(names, "MAX_NAMES", 10)
    monkeypatch.setattr(names, "MAX_NAMES_OF_ADDRESS", 5)
    map_ = known(Server(**{f"n{i}_test": [[f"198.51.100.{i}", "203.0.113.1"]] for i in range(30)}))
    for i in range(30):
        map_.learn(f"n{i}.test", 0)
    assert map_.of(ip_address("198.51.100.0")) == () and map_.of(ip_address("198.51.100.29")) == ("n29.test",)
    assert map_.of(ip_address("203.0.113.1")) == tuple(f"n{i}.test" for i in range(25, 30))
    assert not map_.fresh("n0.test", 0) and map_.fresh("n29.test", 0)


def test_threads_learn_at_the_same_time():
    map_ = known(Server(**{f"n{i}_test": [[f"198.51.100.{i}"]] for i in range(50)}))
    failed = []

    def learn(first: int) -> None:
        for i in range(50):
            name = f"n{(i + first) % 50}.test"
            if str(map_.learn(name, 0)[0]) != f"198.51.100.{(i + first) % 50}":
                failed.append(name)

    threads = [threading.Thread(target=learn, args=(7 * i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed
    assert all(map_.of(ip_address(f"198.51.100.{i}")) == (f"n{i}.test",) for i in range(50))


def verdict(rules: list[str], address: str, led: tuple[str, ...], port: int = 443, proto: str = "tcp") -> str:
    found = judge.addressed(judge.of_texts(rules), targets.literal(address), led, port, proto)
    return found.reason


@pytest.mark.parametrize(
    ("rules", "address", "led", "reason"),
    [
        (["a.test:443"], "198.51.100.1", ("a.test",), "allow"),
        (["a.test:443"], "198.51.100.1", (), "default"),
        (["a.test:443"], "198.51.100.1", ("b.test",), "default"),
        (["a.test:443"], "198.51.100.1", ("a.test", "b.test"), "allow"),  # one address of two names
        (["a.test:443", "!b.test"], "198.51.100.1", ("b.test",), "deny"),
        (["a.test:443", "!198.51.100.0/24"], "198.51.100.1", ("a.test",), "deny"),
        (["a.test:443"], "127.0.0.1", ("a.test",), "loopback"),  # rebinding
        (["a.test:443"], "0.0.0.0", ("a.test",), "loopback"),
        (["a.test:443"], "169.254.169.254", ("a.test",), "protected"),
        (["a.test:443"], "::ffff:127.0.0.1", ("a.test",), "loopback"),
        (["a.test:444"], "198.51.100.1", ("a.test",), "default"),
        (["198.51.100.0/24:443"], "198.51.100.1", (), "allow"),
    ],
)
def test_an_address_is_judged_by_the_names_that_led_there(rules, address, led, reason):
    assert verdict(rules, address, led) == reason


@pytest.mark.parametrize(
    ("address", "reason"),
    [("198.51.100.1", "allow"), ("127.0.0.1", "loopback"), ("::1", "loopback"), ("fe80::1", "protected"),
     ("203.0.113.9", "deny")],
)  # fmt: skip
def test_an_allowed_name_does_not_lead_everywhere(address, reason):
    rules = judge.of_texts(["a.test:443", "!203.0.113.0/24"])
    assert judge.led_to(rules, "a.test", targets.literal(address), 443, "tcp").reason == reason
