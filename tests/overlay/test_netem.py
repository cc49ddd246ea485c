"""What befalls segments: the statistics of chance, the exactness of delay and rate, and that the same seed gives the same losses."""

from __future__ import annotations

from itertools import pairwise

import pytest

from emu.errors import DropReason
from emu.model.links import Conditions
from emu.overlay.netem import HOLD_BACK, LIMIT, Chance, Netem, Tally

NOW, SEGMENT = 1000.0, 1500


def netem(seed="1/a->b", **conditions):
    made = Netem(seed)
    tallies = {name: Tally() for name in conditions}
    made.set(Conditions(**conditions), tallies)
    return made, tallies


def offer_each(made, count, now=NOW, size=SEGMENT):
    """Packets offered one by one: when each of their copies leaves."""
    return [[at for _, _, at in made.offer(1, 0, size, now)[0]] for _ in range(count)]


def test_a_fair_link_lets_everything_pass_at_once():
    made, _ = netem()
    assert made.offer(44, SEGMENT, 100, NOW) == ([(0, 44, NOW)], [])


@pytest.mark.parametrize("p", [0.001, 0.02, 0.3, 0.999])
@pytest.mark.parametrize("seed", ["1/a->b", "2/b->a"])
def test_chance_hits_as_often_as_it_says(p, seed):
    """Within 4 standard deviations of a binomial distribution; gaps between hits as a geometric one has them."""
    chance, trials = Chance(p, seed), 100_000
    hits = [trial for trial in range(trials) if chance.hit()]
    assert abs(len(hits) - trials * p) < 4 * (trials * p * (1 - p)) ** 0.5
    together = sum(b - a == 1 for a, b in pairwise(hits))
    assert abs(together - len(hits) * p) < 4 * (len(hits) * p * (1 - p)) ** 0.5 + 1


@pytest.mark.parametrize(("p", "hits"), [(0.0, 0), (1.0, 1000)])
def test_never_and_always_are_exact(p, hits):
    chance = Chance(p, "x")
    assert sum(chance.hit() for _ in range(1000)) == hits


def test_the_same_seed_loses_the_same_and_another_link_others():
    def lost(seed, **more):
        made, _ = netem(seed, loss=0.05, **more)
        return [number for number, copies in enumerate(offer_each(made, 4000)) if not copies]

    assert lost("1/a->b") == lost("1/a->b")
    assert lost("1/a->b") != lost("1/b->a") != lost("2/b->a")
    assert lost("1/a->b") == lost("1/a->b", delay=0.02, jitter=0.01, reorder=0.1), "other conditions have streams of their own"


def test_what_is_set_again_begins_its_stream_again_and_what_is_not_touched_goes_on():
    made, tallies = netem(loss=0.05)
    first = [bool(copies) for copies in offer_each(made, 1000)]
    made.set(Conditions(loss=0.05, delay=0.01), {"loss": tallies["loss"], "delay": Tally()})
    assert [bool(copies) for copies in offer_each(made, 1000)] != first
    made.set(Conditions(), {})
    made.set(Conditions(loss=0.05), tallies)
    assert [bool(copies) for copies in offer_each(made, 1000)] == first


@pytest.mark.parametrize("count", [1, 3, 44])
def test_losses_are_of_segments_however_they_are_packed(count):
    """Segment by segment or as GSO packets of 44: the same segments are lost."""
    total = 4400
    made, tallies = netem(loss=0.02)
    kept = []
    for start in range(0, total, count):
        n = min(count, total - start)
        shares, _ = made.offer(n, SEGMENT, SEGMENT, NOW)
        kept += [start + first + k for first, number, _ in shares for k in range(number)]
    alone, _ = netem(loss=0.02)
    assert kept == [number for number, copies in enumerate(offer_each(alone, total)) if copies]
    assert tallies["loss"].lost == total - len(kept)


def test_survivors_with_one_fate_stay_together():
    made, _ = netem(loss=0.05, delay=0.01)
    shares = [share for _ in range(100) for share in made.offer(44, SEGMENT, 100, NOW)[0]]
    assert all(at == NOW + 0.01 for _, _, at in shares)
    assert 100 < len(shares) < 500, "runs, not segments"


def test_delay_is_exact_and_in_order():
    made, tallies = netem(delay=0.02)
    assert offer_each(made, 3) == [[NOW + 0.02]] * 3
    assert tallies["delay"].delayed == 3


def test_jitter_is_uniform_around_the_delay():
    made, _ = netem(delay=0.02, jitter=0.005)
    delays = sorted(at - NOW for (at,) in offer_each(made, 20_000))
    assert delays[0] >= 0.015 - 1e-9
    assert delays[-1] <= 0.025 + 1e-9
    for quarter in (1, 2, 3):
        assert delays[quarter * 5000] == pytest.approx(0.015 + 0.0025 * quarter, abs=0.0002)


def test_jitter_alone_never_delivers_before_it_was_sent():
    made, _ = netem(jitter=0.005)
    delays = [at - NOW for (at,) in offer_each(made, 1000)]
    assert min(delays) == 0.0
    assert max(delays) < 0.005


def test_rate_puts_bits_on_the_wire_one_after_the_other():
    made, _ = netem(rate=10e6)
    assert [at for (at,) in offer_each(made, 100)] == pytest.approx([NOW + 1500 * 8 / 10e6 * n for n in range(1, 101)])
    assert offer_each(made, 1, now=NOW + 10, size=64) == [[NOW + 10 + 64 * 8 / 10e6]], "an idle link owes nothing"


def test_the_rate_of_a_gso_packet_is_that_of_its_segments_and_the_delay_comes_after():
    made, _ = netem(rate=10e6, delay=0.05)
    shares, _ = made.offer(3, 1500, 100, NOW)
    sent = [NOW + (1500 * 8) * n / 10e6 for n in (1, 2)] + [NOW + (2 * 1500 + 100) * 8 / 10e6]
    assert [(first, number) for first, number, _ in shares] == [(0, 1), (1, 1), (2, 1)]
    assert [at for *_, at in shares] == pytest.approx([at + 0.05 for at in sent])


def test_a_queue_before_the_rate_is_bounded_and_its_overflow_is_told():
    made, tallies = netem(rate=1e6)
    taken = sum(bool(copies) for copies in offer_each(made, 2000))
    assert taken == LIMIT // SEGMENT
    assert made.offer(3, SEGMENT, SEGMENT, NOW) == ([], [(DropReason.LINK_OVERFLOW, 3)])
    assert tallies["rate"].overflowed == 2000 - taken + 3
    half = NOW + LIMIT * 8 / 1e6 / 2
    assert sum(bool(copies) for copies in offer_each(made, 2000, now=half)) == pytest.approx(LIMIT // SEGMENT / 2, abs=1)


def test_a_copy_travels_by_itself():
    made, tallies = netem(duplicate=0.1, delay=0.02, jitter=0.01)
    copies = offer_each(made, 10_000)
    twice = [one for one in copies if len(one) == 2]
    assert abs(len(twice) - 1000) < 4 * 30
    assert tallies["duplicate"].duplicated == len(twice)
    assert all(a != b for a, b in twice)


def test_every_copy_may_be_lost():
    made, _ = netem(duplicate=1.0, loss=0.5)
    numbers = [len(copies) for copies in offer_each(made, 4000)]
    assert [numbers.count(n) for n in (0, 1, 2)] == pytest.approx([1000, 2000, 1000], abs=130)


def test_the_reordered_overtake_those_that_are_delayed():
    made, tallies = netem(delay=0.02, reorder=0.25)
    delays = [at - NOW for (at,) in offer_each(made, 4000)]
    assert set(delays) == {0.0, NOW + 0.02 - NOW}
    assert delays.count(0.0) == tallies["reorder"].reordered == pytest.approx(1000, abs=110)


@pytest.mark.parametrize("rate", [0.0, 10e6])
def test_reordering_alone_holds_back_the_chosen_so_that_others_overtake(rate):
    made, _ = netem(reorder=0.1, **({"rate": rate} if rate else {}))
    times = [at for (at,) in offer_each(made, 500)]
    overtaken = [number for number in range(490) if times[number] > times[number + 1]]
    assert len(overtaken) == pytest.approx(45, abs=25)
    if not rate:
        assert set(times) == {NOW, NOW + HOLD_BACK}


def test_a_cut_link_passes_nothing():
    made, tallies = netem(cut=True, delay=0.02)
    assert made.offer(44, SEGMENT, 100, NOW) == ([], [(DropReason.LINK_CUT, 44)])
    assert tallies["cut"].cut == 44


def test_a_datagram_in_fragments_is_lost_as_a_whole():
    made, _ = netem(loss=0.02)
    results = [made.offer(10, 1480, 500, NOW, divisible=False) for _ in range(5000)]
    assert {tuple(shares) for shares, _ in results} == {(), ((0, 10, NOW),)}
    lost = sum(not shares for shares, _ in results)
    assert lost == pytest.approx(5000 * (1 - 0.98**10), abs=4 * 28)
    assert {drop for _, drops in results for drop in drops} == {(DropReason.LINK_LOSS, 1)}
