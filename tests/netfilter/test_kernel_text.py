"""This machine's kernel takes every match and target in both of our forms, and gives them back as `save_text` says it would."""

from __future__ import annotations

import shutil

import pytest

from emu.netfilter.reader import read_rules
from emu.netfilter.text import restore_text, save_text
from tests.kit.netns import missing, namespaces, run
from tests.kit.rulesets import vocabulary

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(missing("iptables-restore")), reason=missing("iptables-restore"))]

BACKENDS = [name for name in ("iptables-nft", "iptables-legacy") if shutil.which(f"{name}-restore")]


def plain(dump: str) -> dict[str, list[str]]:
    """Each table's lines without remarks and packet counters, chains in the order of names."""
    tables: dict[str, list[str]] = {}
    for line in dump.splitlines():
        if line.startswith("*"):
            lines = tables.setdefault(line, [])
        elif not line.startswith("#"):
            lines.append(line.rpartition(" [")[0] or line)
    return {
        name: sorted(line for line in lines if line[0] == ":") + [line for line in lines if line[0] != ":"]
        for name, lines in tables.items()
    }


@pytest.mark.parametrize("form", [restore_text, save_text], ids=["restore", "save"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_we_print_loads_and_comes_back_as_we_save_it(backend, form):
    with namespaces(backend[-6:]) as netns:
        (name,) = netns.values()
        run(f"ip netns exec {name} {backend}-restore", stdin=form(vocabulary()))
        saved = run(f"ip netns exec {name} {backend}-save")
    assert plain(saved) == plain(save_text(vocabulary()))
    assert plain(save_text(read_rules(saved))) == plain(saved), "a real dump is read as it is"
