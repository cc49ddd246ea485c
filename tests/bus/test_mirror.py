"""Publisher and mirror together: whatever is lost, late or doubled on the way, a node's copy becomes the store's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.bus.messages import DEL, NODES, SERVICES, SET, Update, pack, unpack
from emu.bus.mirror import KEPT, Applied, Mirror
from emu.bus.publisher import BATCH, Publisher
from emu.bus.views import NodeRecord, node_value
from emu.model.tun import ANNOTATION, TunSpec, annotation
from emu.store.store import Store


def put(key, value):
    return (SET, key, pack(value))


def snapshot(sequence, **items):
    return {
        "t": "snapshot",
        "stream": "s",
        "sequence": sequence,
        "revision": sequence,
        "items": [[key, pack(value)] for key, value in items.items()],
    }


def update(sequence, *changes):
    return Update("s", sequence, sequence, list(changes))


def synced(**items):
    mirror = Mirror("s")
    mirror.apply_snapshot(snapshot(10, **items))
    return mirror


@pytest.mark.parametrize(
    ("name", "incoming", "changed", "resync", "content"),
    [
        ("the next update changes its keys", [update(11, put("a", 2), put("b", 1))], ["a", "b"], False, {"a": 2, "b": 1}),
        ("an old update changes nothing", [update(10, put("a", 9))], [], False, {"a": 1}),
        ("a deletion of what is not there changes nothing", [update(11, (DEL, "z", b""))], [], False, {"a": 1}),
        ("a deletion takes the key away", [update(11, (DEL, "a", b""))], ["a"], False, {}),
        ("a gap changes nothing and asks for a snapshot", [update(12, put("a", 9))], [], True, {"a": 1}),
    ],
)
def test_an_update_to_a_synced_mirror(name, incoming, changed, resync, content):
    mirror = synced(a=1)
    applied = [mirror.apply(one) for one in incoming]
    assert applied[-1] == Applied(changed, resync), name
    assert dict(mirror.items()) == content
    assert mirror.synced is not resync


def test_updates_before_the_snapshot_wait_for_it_and_old_ones_are_dropped():
    mirror = Mirror("s")
    for sequence in (9, 10, 11, 12):
        assert mirror.apply(update(sequence, put("a", sequence))) == Applied([])
    assert mirror.apply_snapshot(snapshot(10, a=10, b=1)) == Applied(["a", "b"])
    assert (mirror.sequence, dict(mirror.items())) == (12, {"a": 12, "b": 1})


def test_a_gap_among_the_updates_that_waited_asks_again_and_forgets_no_changed_key():
    mirror = Mirror("s")
    mirror.apply(update(12, put("a", 12)))
    assert mirror.apply_snapshot(snapshot(10, a=10)) == Applied(["a"], resync=True)
    assert mirror.apply_snapshot(snapshot(11, a=11)) == Applied(["a"])
    assert mirror.get("a") == 12


def test_a_resync_changes_only_what_differs():
    mirror = synced(same=1, other=1, gone=1)
    mirror.lose()
    assert mirror.apply_snapshot(snapshot(20, same=1, other=2, new=3)) == Applied(["other", "new", "gone"])


def test_a_snapshot_that_never_comes_is_asked_for_again_rather_than_waited_for_in_ever_more_memory():
    mirror = Mirror("s")
    answers = [mirror.apply(update(n)) for n in range(KEPT + 1)]
    assert [n for n, applied in enumerate(answers) if applied.resync] == [KEPT]


def service(name, port=80, **labels):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "labels": labels},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]},
    }


def endpoints(name, service_name, *ips):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service_name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
        "ports": [{"port": 80}],
    }


def pod(name, node=None, uid="u"):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": uid},
        "spec": {"nodeName": node} if node else {},
    }


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def publisher(store):
    publisher = Publisher(store.get)
    store.subscribe(publisher.on_changes)
    return publisher


def test_a_burst_of_changes_to_one_service_is_one_value(store, publisher):
    store.create("services", service("web"))
    store.create("endpointslices", endpoints("web-1", "web", "10.244.1.2"))
    store.update("services", service("web", 81))
    (only,) = publisher.flush()
    ((op, key, value),) = only.changes
    assert (only.stream, only.sequence, op, key) == (SERVICES, 1, SET, "default/web")
    assert only.revision == store.revision
    assert unpack(value)["service"]["spec"]["ports"] == [{"port": 81}]
    assert [one["metadata"]["name"] for one in unpack(value)["slices"]] == ["web-1"]


def test_an_update_is_as_old_as_its_oldest_change(store):
    clock = iter(range(10, 20))
    publisher = Publisher(store.get, now=lambda: next(clock))
    store.subscribe(publisher.on_changes)
    store.create("services", service("web"))
    store.create("services", service("other"))
    store.update("services", service("web", 81))
    publisher.flush()
    assert publisher.noted == {SERVICES: 10}
    store.update("services", service("web", 82))
    publisher.flush()
    assert publisher.noted == {SERVICES: 13}


def test_a_change_that_nodes_do_not_read_is_not_sent(store, publisher):
    store.create("services", service("web"))
    publisher.flush()
    changed = service("web")
    changed["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.update("services", changed)
    assert publisher.pending
    assert publisher.flush() == []
    store.create("configmaps", {"metadata": {"namespace": "default", "name": "c"}, "data": {}})
    assert publisher.flush() == []


def test_a_slice_that_moves_to_another_service_changes_both(store, publisher):
    for name in ("a", "b"):
        store.create("services", service(name))
    store.create("endpointslices", endpoints("x", "a", "10.244.1.2"))
    publisher.flush()
    store.update("endpointslices", endpoints("x", "b", "10.244.1.2"))
    (only,) = publisher.flush()
    assert {key: len(unpack(value)["slices"]) for _, key, value in only.changes} == {"default/a": 0, "default/b": 1}


def test_a_pod_is_only_on_its_own_node_s_stream_and_leaves_it_when_deleted(store, publisher):
    store.create("pods", pod("p"))
    assert publisher.flush() == []
    store.update("pods", pod("p", "node-2"))
    (bound,) = publisher.flush()
    assert (bound.stream, bound.changes[0][1]) == ("node/node-2", "default/p")
    store.delete("pods", "default", "p")
    store.create("pods", pod("p", "node-1", uid="other"))  # before anyone was told
    moved = {one.stream: one.changes for one in publisher.flush()}
    assert moved["node/node-2"] == [(DEL, "default/p", b"")]
    assert unpack(moved["node/node-1"][0][2])["metadata"]["uid"] == "other"


@pytest.mark.parametrize(
    ("ip", "cidr", "sent"),
    [
        ("192.168.0.9", "10.244.9.0/24", True),
        ("", "10.244.9.0/24", False),  # a Node made with kubectl, which nothing runs
        ("192.168.0.9", "", False),
        ("192.168.0.300", "10.244.9.0/24", False),
        ("192.168.0.9", "10.244.9.0/aa", False),
        ("2001:db8::9", "2001:db8:9::/64", False),
    ],
)
def test_only_a_node_that_peers_can_route_to_is_sent(store, publisher, ip, cidr, sent):
    addresses = [{"type": "InternalIP", "address": ip}] if ip else []
    store.create("nodes", {"metadata": {"name": "n"}, "spec": {"podCIDR": cidr}, "status": {"addresses": addresses}})
    assert [key for one in publisher.flush() for _, key, _ in one.changes] == (["n"] if sent else [])


def test_many_changes_are_cut_into_numbered_batches(store, publisher):
    for n in range(BATCH + 1):
        store.create("services", service(f"s{n}"))
    assert [(one.sequence, len(one.changes)) for one in publisher.flush()] == [(1, BATCH), (2, 1)]


def test_a_restarted_controller_s_first_update_is_a_gap_to_every_node(store, publisher):
    store.create("services", service("a"))
    mirror = Mirror(SERVICES)
    mirror.apply_snapshot(publisher.snapshot(SERVICES))
    for one in publisher.flush():
        mirror.apply(one)
    restarted = Publisher(store.get, epoch=1_000_000)
    store.subscribe(restarted.on_changes)
    store.create("services", service("b"))
    (first,) = restarted.flush()
    assert mirror.apply(first).resync


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "flush", "lose", "snapshot"]), st.integers(0, 3), st.integers(1, 3)),
    min_size=1,
    max_size=40,
)


@given(STEPS)
def test_any_loss_ends_in_the_store_s_content_once_resynced(steps):
    """The Clone pattern's promise, with updates lost at random and snapshots taken at any moment."""
    store = Store()
    publisher = Publisher(store.get)
    store.subscribe(publisher.on_changes)
    mirror, seen, losing = Mirror(SERVICES), {}, False

    def take(applied):
        for key in applied.changed:
            value = mirror.get(key)
            seen.pop(key, None) if value is None else seen.__setitem__(key, value)
        return applied.resync

    def flush():
        for one in publisher.flush():
            if not losing and take(mirror.apply(one)):
                take(mirror.apply_snapshot(publisher.snapshot(SERVICES)))

    for what, which, port in steps:
        exists = store.get("services", "default", f"s{which}")
        if what == "put":
            (store.update if exists else store.create)("services", service(f"s{which}", port))
        elif what == "delete" and exists:
            store.delete("services", "default", f"s{which}")
        elif what == "lose":
            losing = not losing
        elif what == "snapshot":
            take(mirror.apply_snapshot(publisher.snapshot(SERVICES)))
        else:
            flush()
    losing = False
    flush()
    take(mirror.apply_snapshot(publisher.snapshot(SERVICES)))
    wanted = {f"default/{s['metadata']['name']}": s["spec"]["ports"] for s in store.list("services")[0]}
    assert {key: value["service"]["spec"]["ports"] for key, value in mirror.items()} == wanted
    assert dict(mirror.items()) == seen, "the keys named as changed tell the whole story"


def test_nodes_are_published_as_their_neighbours_need_them(store, publisher):
    store.create(
        "nodes",
        {
            "metadata": {
                "name": "node-1",
                "labels": {"zone": "a"},
                "annotations": {"podwire.dev/endpoint": "ipc:///x", "podwire.dev/incarnation": "4"},
            },
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "192.168.0.2"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
    )
    (one,) = publisher.flush()
    assert one.stream == NODES
    assert unpack(one.changes[0][2]) == [[b"\xc0\xa8\0\2"], b"\x0a\xf4\1\0", 24, "ipc:///x", 4, True, "", ""]
    assert NodeRecord.read(one.changes[0][2]) == NodeRecord([b"\xc0\xa8\0\2"], b"\x0a\xf4\1\0", 24, "ipc:///x", 4, True, "")


def test_peers_hear_of_the_networks_behind_a_nodes_tun_devices_but_not_behind_its_pods():
    tuns = [TunSpec("pw0", "a", "172.31.0.1/24"), TunSpec("pw1", "b", "172.30.0.1/24"), TunSpec("pw2", "c", "10.1.0.1/24", pod="default/p")]
    node = {"metadata": {"name": "node-1", "annotations": {ANNOTATION: annotation(tuns)}}, "spec": {"podCIDR": "10.244.1.0/24"}}
    value = {**node_value(node), "ip": "192.168.0.2"}
    assert NodeRecord.of(value).routes == "172.30.0.0/24 172.31.0.0/24"
    assert NodeRecord.read(pack(NodeRecord.of(value))) == NodeRecord.of(value)
    assert NodeRecord.read(pack(NodeRecord.of({**value, "routes": "172.30.0.0/24 nonsense"}))) is None
