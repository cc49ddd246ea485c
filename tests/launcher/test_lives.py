"""What follows from deaths and faults: a table of lives, with the time as an argument."""

from __future__ import annotations

import signal

import pytest

from emu.errors import PodwireError
from launcher.lives import FIRST_WAIT, LONGEST_WAIT, Lives, Signal, Start, State, how

NODE = "node/a"


def running(*names: str) -> Lives:
    """Lives with everything started, pids from 100."""
    lives = Lives(list(names))
    for pid, effect in enumerate(lives.due(0.0), 100):
        lives.started(effect.name, pid, 0.0)
    return lives


def test_everything_is_started_once():
    lives = Lives(["zygote", NODE])
    assert lives.due(0.0) == [Start("zygote", 1), Start(NODE, 1)]
    assert lives.due(100.0) == []


def test_a_node_that_dies_by_itself_comes_back_as_its_next_incarnation_after_a_wait():
    lives = running(NODE)
    lives.exited(100, signal.SIGSEGV, 5.0)
    assert lives.next_due() == 5.0 + FIRST_WAIT
    assert lives.due(5.0) == []
    assert lives.due(5.0 + FIRST_WAIT) == [Start(NODE, 2)]


def test_waits_double_up_to_a_limit_and_start_anew_after_a_healthy_life():
    lives, now, waits = running(NODE), 0.0, []
    for pid in range(100, 110):
        lives.exited(pid, 1 << 8, now)
        waits.append(lives.next_due() - now)
        now = lives.next_due()
        lives.due(now)
        lives.started(NODE, pid + 1, now)
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert waits[-1] == pytest.approx(LONGEST_WAIT)
    lives.exited(110, 1 << 8, now + 60)
    assert lives.next_due() == now + 60 + FIRST_WAIT


def test_a_killed_node_stays_down_until_it_is_started():
    lives = running(NODE)
    assert lives.fault(NODE, "killed") == [Signal(100, signal.SIGKILL)]
    assert not lives.by_name[NODE].settled
    lives.exited(100, signal.SIGKILL, 1.0)
    assert lives.by_name[NODE].settled
    assert lives.next_due() is None
    assert lives.due(1000.0) == []
    assert lives.fault(NODE, "started") == [Start(NODE, 2)]


def test_a_paused_node_can_be_resumed_or_killed():
    lives = running(NODE)
    assert lives.fault(NODE, "paused") == [Signal(100, signal.SIGSTOP)]
    assert lives.fault(NODE, "resumed") == [Signal(100, signal.SIGCONT)]
    lives.fault(NODE, "paused")
    assert lives.fault(NODE, "killed") == [Signal(100, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("before", "state", "told"),
    [
        ([], "resumed", "a is running and cannot be resumed: only what is paused can"),
        ([], "started", "a is running and cannot be started: only what is killed or dead can"),
        (["paused"], "paused", "a is paused and cannot be paused"),
        (["killed"], "killed", "a is killed and cannot be killed"),
        (["killed"], "resumed", "a is killed and cannot be resumed"),
        (["killed"], "started", "a is killed and cannot be started"),  # for its former life is not gone yet
        ([], "roasted", "'roasted' is no state to bring a process to; killed, paused, resumed, started, restarted are"),
    ],
)
def test_what_cannot_be_done_from_where_a_node_is_is_refused(before, state, told):
    lives = running(NODE)
    for step in before:
        lives.fault(NODE, step)
    with pytest.raises(PodwireError, match=told):
        lives.fault(NODE, state)


def test_a_restart_is_done_when_the_next_life_runs_and_counts_as_no_death():
    lives = running(NODE)
    assert lives.fault(NODE, "restarted") == [Signal(100, signal.SIGKILL)]
    lives.exited(100, signal.SIGKILL, 1.0)
    assert not lives.by_name[NODE].settled
    assert lives.due(1.0) == [Start(NODE, 2)]
    assert not lives.by_name[NODE].settled
    lives.started(NODE, 101, 1.0)
    assert lives.by_name[NODE].settled
    assert lives.by_name[NODE].deaths == 0


def test_a_restart_whose_start_fails_goes_on_until_it_runs():
    lives = running(NODE)
    lives.fault(NODE, "restarted")
    lives.exited(100, signal.SIGKILL, 1.0)
    lives.due(1.0)
    lives.not_started(NODE, "the zygote died", 1.0)
    assert not lives.by_name[NODE].settled
    assert lives.due(1.0 + FIRST_WAIT) == [Start(NODE, 3)]


def test_a_node_killed_while_its_start_is_under_way_is_killed_as_soon_as_it_is_there():
    lives = Lives([NODE])
    lives.due(0.0)
    assert lives.fault(NODE, "killed") == []
    assert not lives.by_name[NODE].settled
    assert lives.started(NODE, 100, 0.1) == [Signal(100, signal.SIGKILL)]
    lives.exited(100, signal.SIGKILL, 0.2)
    assert (lives.by_name[NODE].state, lives.by_name[NODE].settled) == (State.KILLED, True)
    assert lives.due(100.0) == []


def test_a_kill_during_a_restart_wins():
    lives = running(NODE)
    lives.fault(NODE, "restarted")
    lives.exited(100, signal.SIGKILL, 1.0)
    lives.fault(NODE, "killed")
    assert lives.by_name[NODE].settled
    assert lives.due(100.0) == []


def test_a_fault_on_no_node_names_those_that_are():
    with pytest.raises(PodwireError, match="there is no node 'c'; there are a to b"):
        running("zygote", NODE, "node/b").fault("node/c", "killed")
    with pytest.raises(PodwireError, match=r"there is no node 'node-21'; did you mean node-2\?"):
        running("node/node-1", "node/node-2").fault("node/node-21", "killed")


def test_a_fork_that_the_zygote_took_into_its_grave_is_tried_again():
    lives = Lives([NODE])
    lives.due(0.0)
    lives.not_started(NODE, "the zygote died", 1.0)
    assert lives.by_name[NODE].state == State.DEAD
    assert lives.due(2.0) == [Start(NODE, 2)]


def test_a_stop_wakes_the_paused_starts_nothing_and_kills_who_is_started_too_late():
    lives = running("zygote", "controller", NODE)
    lives.exited(101, 0, 1.0)
    assert lives.stop() == [Signal(102, signal.SIGTERM), Signal(102, signal.SIGCONT)]
    assert lives.due(100.0) == []
    assert lives.kill_all() == [Signal(102, signal.SIGKILL)]
    lives.exited(102, 0, 2.0)
    assert lives.remaining == 0
    assert lives.started(NODE, 103, 3.0) == [Signal(103, signal.SIGKILL)]


def test_an_exit_of_a_stranger_is_nobodys():
    assert running(NODE).exited(999, 0, 1.0) is None


@pytest.mark.parametrize(("status", "words"), [(0, "exit 0"), (1 << 8, "exit 1"), (9, "SIGKILL"), (139, "SIGSEGV"), (40, "signal 40")])
def test_wait_statuses_are_told_in_words(status, words):
    assert how(status) == words


@pytest.mark.parametrize("state", ["started", "restarted", "killed", "paused"])
def test_nothing_is_started_or_stopped_any_more_when_all_of_it_goes_down(state):
    """A start without a zygote to carry it out would be waited for without end."""
    lives = running("zygote", NODE)
    lives.fault(NODE, "killed")
    lives.stop()
    lives.exited(101, signal.SIGKILL, 1.0)
    with pytest.raises(PodwireError, match=f"a cannot be {state}: the cluster is going down"):
        lives.fault(NODE, state)
    assert lives.remaining == 0
