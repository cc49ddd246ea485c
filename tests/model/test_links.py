"""Faults on links: how they are written, which nodes they mean, and which one decides."""

from __future__ import annotations

import pytest

from emu.errors import ConfigError
from emu.model.links import Conditions, Link, Place, between, check_words, read_fault, read_links
from emu.model.quantities import duration, percentage, rate

A, B, C = Place("a", "x"), Place("b", "y"), Place("c")


def faults(*specs):
    return [read_fault(spec, f"fault-{number}", number) for number, spec in enumerate(specs, 1)]


def found(*specs, a=A, b=B, links=None):
    trouble = between([*read_links(links or {}), *faults(*specs)], a, b)
    return trouble.conditions, dict(trouble.blame)


@pytest.mark.parametrize(
    ("text", "a_to_b", "b_to_a"),
    [
        ("a->b", 4, -1),
        ("a<->b", 4, 4),
        ("b <-> a", 4, 4),
        ("a->zone/y", 3, -1),
        ("zone/x->b", 3, -1),
        ("zone/x->zone/y", 2, -1),
        ("a->*", 2, -1),
        ("*->a", -1, 2),
        ("zone/y<->*", 1, 1),
        ("*->*", 0, 0),
        ("c->*", -1, -1),
        ("zone/z->*", -1, -1),
    ],
)
def test_a_link_names_directions(text, a_to_b, b_to_a):
    link = Link.parse(text)
    assert (link.specificity(A, B), link.specificity(B, A)) == (a_to_b, b_to_a)
    assert Link.parse(str(link)) == link


def test_a_node_without_a_zone_is_in_none():
    assert Link.parse("zone/x->*").specificity(C, A) == -1


@pytest.mark.parametrize("text", ["a", "a-b", "a->", "->b", "a->b->c", "a<-b", "zone/->b", "a b->c", 3, None, "a|b->c"])
def test_what_is_no_link_is_told_what_one_is(text):
    with pytest.raises(ConfigError, match=r"is not a link: A->B or A<->B, where A and B are a node's name, zone/ZONE or \*"):
        Link.parse(text)


def test_each_condition_is_that_of_the_most_specific_fault_that_sets_it():
    conditions, blame = found(
        {"link": "a->b", "delay": "20ms"}, {"link": "*->*", "delay": "1s", "loss": "2%"}, {"link": "zone/x->*", "loss": "5%", "cut": True}
    )
    assert conditions == Conditions(delay=0.02, loss=0.05, cut=True)
    assert blame == {"delay": "fault-1", "loss": "fault-3", "cut": "fault-3"}


def test_of_equally_specific_faults_the_later_decides():
    assert found({"link": "a->b", "loss": 1}, {"link": "a<->b", "loss": 2})[0].loss == 0.02
    assert found({"link": "zone/x->b", "loss": 1}, {"link": "a->zone/y", "loss": 2})[0].loss == 0.02


def test_a_specific_fault_may_open_what_a_general_one_cuts():
    both = {"link": "*->*", "cut": True}, {"link": "a->b", "cut": False}
    assert not found(*both)[0].cut
    assert found(*both, a=B, b=A)[0].cut


def test_the_links_of_the_cluster_file_stand_below_all_faults():
    links = {"default": {"delay": "1ms", "loss": 1}, "a->b": {"delay": "2ms"}}
    assert found(links=links)[0] == Conditions(delay=0.002, loss=0.01)
    assert found(links=links, a=B, b=A)[0] == Conditions(delay=0.001, loss=0.01)
    assert found({"link": "*->*", "delay": "50ms"}, links=links)[0] == Conditions(delay=0.05, loss=0.01)


@pytest.mark.parametrize(
    ("groups", "cut"),
    [
        ([["a"], ["b"]], True),
        ([["a", "b"], ["c"]], False),
        ([["a"], ["c"]], False),
        ([["zone/x"], ["zone/y"]], True),
        ([["a"], ["*"]], True),
        ([["zone/x", "b"], ["*"]], False),
        ([["c"], ["zone/x"], ["b"]], True),
        ([["zone/y", "a"], ["zone/x", "c"]], False),
    ],
)
def test_a_partition_cuts_both_ways_between_groups_and_no_one_else(groups, cut):
    partition = {"partition": groups}
    assert found(partition)[0].cut is found(partition, a=B, b=A)[0].cut is cut
    assert found(partition, {"link": "a->b", "cut": False})[0].cut is cut, "a partition cannot be overruled"
    assert found(partition)[1] == ({"cut": "fault-1"} if cut else {})


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({}, "has either link (with its conditions) or partition"),
        ({"link": "a->b", "partition": [["a"], ["b"]]}, "has either link (with its conditions) or partition"),
        ("a->b", "a fault is a mapping with link or partition, not 'a->b'"),
        ({"link": "a->b"}, "must say at least one of delay, jitter, loss, rate, duplicate, reorder, cut"),
        ({"link": "a->b", "dealy": "1s"}, "dealy: unknown key; did you mean delay?"),
        ({"link": "a->b", "loss": "101%"}, "loss: '101%' is not a percentage from 0 to 100, such as 2% or 0.1%"),
        ({"link": "a->b", "loss": -1}, "loss: -1 is not a percentage"),
        ({"link": "a->b", "loss": True}, "loss: True is not a percentage"),
        ({"link": "a->b", "delay": "soon"}, "delay: 'soon' is not a duration such as 40s or 250ms"),
        ({"link": "a->b", "delay": "2m"}, "delay: '2m' is longer than 60s"),
        ({"link": "a->b", "rate": "10MB/s"}, "rate: '10MB/s' is not a rate such as 10mbit or 1gbit"),
        ({"link": "a->b", "cut": "yes"}, "cut: must be true or false, not 'yes'"),
        ({"partition": [["a"]]}, "partition: must be a list of two or more groups"),
        ({"partition": [["a"], []]}, "partition: must be a list of two or more groups"),
        ({"partition": [["a"], ["a"]]}, "partition[1][0]: a is named twice"),
        ({"partition": [["a"], ["b"]], "loss": 1}, "loss: a partition has no further keys"),
    ],
)
def test_what_is_wrong_is_told_with_its_path_and_what_would_be_right(spec, complaint):
    with pytest.raises(ConfigError) as error:
        read_fault(spec)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"link": "a->bb", "loss": 1}, "link: there is no node 'bb'; did you mean b?"),
        ({"link": "zone/xx->*", "loss": 1}, "link: no node has the zone 'xx'; did you mean zone/x?"),
        ({"partition": [["a"], ["c", "d"]]}, "partition[1][1]: there is no node 'd'; did you mean "),
    ],
)
def test_a_fault_that_names_nobody_is_refused(spec, complaint):
    with pytest.raises(ConfigError) as error:
        check_words(read_fault(spec), [A, B, C])
    assert str(error.value).startswith(complaint)
    check_words(read_fault({"link": "zone/y<->a", "loss": 1}), [A, B, C])


def test_quantities_are_tcs_and_gos():
    assert [duration(text, "") for text in ("250ms", "1m30s", "50us", 2, "0")] == [0.25, 90.0, pytest.approx(50e-6), 2.0, 0.0]
    assert [percentage(text, "") for text in ("2%", "0.1%", ".5%", 50, 0, "100%")] == [0.02, 0.001, 0.005, 0.5, 0.0, 1.0]
    assert [rate(text, "") for text in ("10mbit", "1Gbit", "64kibit", "8bit", 1000, "1.5mbit", 0)] == [1e7, 1e9, 65536, 8, 1000, 1.5e6, 0]
