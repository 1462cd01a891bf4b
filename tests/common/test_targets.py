"""Which addresses of others may be called. Decided by rules and resolvers of the tests' own: nothing is dialled."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_common.targets import (
    Resolve,
    TargetRefused,
    Targets,
    grpc_target,
    is_public,
    parse_rules,
    system_resolve,
)

PUBLIC_4, PUBLIC_6 = "8.8.8.8", "2606:4700::1111"


def targets(rules: str, names: Mapping[str, Sequence[str]] | None = None) -> Targets:
    """Rules, and a resolver that knows these names only."""

    def resolve(host: str) -> Sequence[str]:
        try:
            return (names or {})[host]
        except KeyError:
            raise OSError("no such name") from None

    return Targets(parse_rules(rules), resolve)


def may(rules: str, host: str, port: int, *stands_for: str) -> bool:
    """Whether the rules allow a host, which stands for these addresses."""
    try:
        targets(rules, {host: stands_for} if stands_for else {}).addresses(host, port)
    except TargetRefused:
        return False
    return True


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254",
        "168.63.129.16", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.168.1.1", "198.18.0.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
        "2002:7f00:1::", "2002:808:808::1", "2001:0:7f00:1::1",
    ],
)  # fmt: skip
def test_no_address_of_a_private_network_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    assert not may("public:*", "crm.example.org", 443, address)
    assert not may("public:*", address, 443)
    assert not may("public:*", f"[{address}]" if ":" in address else address, 443)


@pytest.mark.parametrize("address", [PUBLIC_4, PUBLIC_6, "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert may("public:443", "crm.example.org", 443, address)
    assert not may("public:443", "crm.example.org", 80, address)
    assert may("public:400-500, public:80", "crm.example.org", 443, address)


def test_without_rules_nothing_is_allowed() -> None:
    assert not may("", PUBLIC_4, 443)
    assert not may(" , ", "crm.example.org", 443, PUBLIC_4)


def test_one_forbidden_address_refuses_them_all() -> None:
    assert may("public:*", "crm.example.org", 443, PUBLIC_4, PUBLIC_6)
    assert not may("public:*", "crm.example.org", 443, PUBLIC_4, "10.0.0.1", PUBLIC_6)


def test_a_name_may_stand_for_what_the_operator_runs_itself_but_not_for_a_clouds_credentials() -> (
    None
):
    rules = "crm.example.org:443, *.shop.example:5000-5999"
    assert may(rules, "crm.example.org", 443, "10.0.0.1", "127.0.0.1", PUBLIC_4)
    assert (
        may(rules, "CRM.Example.org.", 443, "10.0.0.1") is False
    )  # the resolver is asked for the plain name
    assert may(rules, "a.b.shop.example", 5432, "fd00::1")
    assert not may(rules, "shop.example", 5432, "fd00::1")
    assert not may(rules, "myshop.example", 5432, "fd00::1")
    assert not may(rules, "crm.example.org.evil.example", 443, "10.0.0.1")
    assert not may(rules, "other.example.org", 443, PUBLIC_4)
    for never in (
        "169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "::", "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16",
    ):  # fmt: skip
        assert not may(rules, "crm.example.org", 443, never)


def test_names_are_compared_without_case_and_the_last_dot() -> None:
    asked = targets("CRM.example.org:443", {"crm.example.org": ["10.0.0.1"]})
    assert asked.addresses("Crm.Example.ORG.", 443) == [ipaddress.ip_address("10.0.0.1")]


def test_addresses_are_allowed_whatever_name_stands_for_them() -> None:
    rules = "127.0.0.0/8:*, [fd00::/8]:443, 169.254.169.254:80"
    assert may(rules, "127.0.0.1", 7410)
    assert may(rules, "localhost", 7410, "127.0.0.1")
    assert may(rules, "[::ffff:127.0.0.1]", 7410)
    assert may(rules, "[fd00::1]", 443)
    assert may(rules, "169.254.169.254", 80)
    assert not may(rules, "localhost", 7410, "::1", "127.0.0.1")
    assert not may(rules, "64:ff9b::7f00:1", 443)


def test_what_is_no_host_is_never_resolved() -> None:
    def resolve(host: str) -> Sequence[str]:
        raise AssertionError(f"{host} was resolved")

    asked = Targets(parse_rules("0.0.0.0/0:*, [::/0]:*"), resolve)
    for host in (
        "unix:/run/docker.sock", "unix-abstract:x", "dns:crm.example.org", "ipv4:127.0.0.1",
        "xds:///x", "dns:///x", "vsock:2", "a b", "", "-a.example", "ä.example", "fe80::1%eth0/x", "a" * 254,
    ):  # fmt: skip
        with pytest.raises(TargetRefused):
            asked.addresses(host, 443)


@pytest.mark.parametrize(
    "host",
    [
        "[2606:4700::1111%1]:443,[::1]",
        "2606:4700::1111%1]:443,[::ffff:169.254.169.254",
        "2606:4700::1111%eth0",
        "2606:4700::1111%",
        "2606:4700::1111%25eth0",
    ],
)
def test_a_zone_that_others_write_is_refused_and_names_no_further_targets(host: str) -> None:
    assert not may("public:*, [::1]:443", host, 443)


def test_a_name_that_changes_its_address_is_checked_every_time() -> None:
    answers: Iterator[Sequence[str]] = iter([["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1"]])
    asked = Targets(parse_rules("127.0.0.0/8:*"), lambda _host: next(answers))
    assert [str(each) for each in asked.addresses("crm.example.org", 80)] == ["127.0.0.1"]
    with pytest.raises(TargetRefused):
        asked.addresses("crm.example.org", 80)
    assert asked.addresses("crm.example.org", 80)
    with pytest.raises(StopIteration):
        next(answers)  # each call asked once


@pytest.mark.parametrize("failure", [OSError("refused"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved_is_refused(failure: Exception) -> None:
    def resolve(_host: str) -> Sequence[str]:
        raise failure

    with pytest.raises(TargetRefused):
        Targets(parse_rules("public:*"), resolve).addresses("crm.example.org", 80)
    assert not may("public:*", "crm.example.org", 80, "no address")


@pytest.mark.parametrize(
    "text",
    [
        "crm.example.org", "crm.example.org:", ":443", "crm.example.org:0", "crm.example.org:65536",
        "crm.example.org:9-8", "crm.example.org:https", "::1:443", "fd00::/8:443", "[fd00::/8:443",
        "10.1.0.5/16:443", "10.1.0.300:443", "*:443", "*example.org:443", ".example.org:443", "a*.example:1",
        "dns:///crm:443", "unix:/run/x:1", "[crm.example.org]:443", "a b:1", "https://crm.example.org:443",
    ],
)  # fmt: skip
def test_rules_that_say_nothing_are_mistakes(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rules(text)


@given(st.text(max_size=40))
def test_any_text_is_rules_or_a_mistake(text: str) -> None:
    try:
        parse_rules(text)
    except ValueError:
        return


@given(st.text(max_size=40))
def test_any_text_is_a_host_or_refused(host: str) -> None:
    assert not may("127.0.0.0/8:1", host, 2, PUBLIC_4)


def test_grpc_dials_exactly_what_was_checked() -> None:
    four, six = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")
    assert (
        grpc_target([four, ipaddress.ip_address("127.0.0.2")], 80)
        == "ipv4:127.0.0.1:80,127.0.0.2:80"
    )
    assert grpc_target([six], 80) == "ipv6:[::1]:80"
    assert grpc_target([six, four], 80) == "ipv6:[::1]:80,[::ffff:127.0.0.1]:80"


def test_the_machines_own_resolver() -> None:
    resolve: Resolve = system_resolve
    assert "127.0.0.1" in resolve("127.0.0.1")
    assert set(resolve("localhost")) <= {"127.0.0.1", "::1"}
