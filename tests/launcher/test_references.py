"""Words for objects, read as kubectl reads them, against an API of a few objects."""

from __future__ import annotations

import pytest

from emu.errors import ApiError, ConfigError, PodwireError
from launcher import references


def pod(name, ready=True, **labels):
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": {"name": name, "namespace": "default", "labels": labels}, "status": {"conditions": conditions}}


class Api:
    """As much of a client as references need."""

    def __init__(self):
        self.pods = [pod("web-b", app="web"), pod("web-a", ready=False, app="web"), pod("solo")]
        self.deployments = {
            "web": {"spec": {"selector": {"matchLabels": {"app": "web"}}}},
            "gone": {"spec": {"selector": {"matchLabels": {"app": "x"}}}},
        }
        self.services = {"shop": {"spec": {"selector": {"app": "web"}}}, "bare": {"spec": {}}}

    def get(self, kind, namespace, name):
        found = {p["metadata"]["name"]: p for p in self.pods} if kind.resource == "pods" else getattr(self, kind.resource)
        if name not in found:
            raise ApiError(404, "NotFound", f'{kind.resource} "{name}" not found')
        return found[name]

    def list(self, kind, namespace="", **query):
        if kind.resource != "pods":
            return [{"metadata": {"name": name}} for name in getattr(self, kind.resource)]
        wanted = dict(term.split("=") for term in query.get("labelSelector", "").split(",") if term)
        return [p for p in self.pods if wanted.items() <= p["metadata"]["labels"].items()]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["pods"], [("pods", "default", "")]),
        (["po", "a", "b"], [("pods", "default", "a"), ("pods", "default", "b")]),
        (["svc,deploy"], [("services", "default", ""), ("deployments", "default", "")]),
        (["deployment/web", "no/node-1"], [("deployments", "default", "web"), ("nodes", "", "node-1")]),
        (["deployments.apps"], [("deployments", "default", "")]),
    ],
)
def test_types_and_names_are_read_as_kubectl_reads_them(words, meant):
    assert [(r.kind.resource, r.namespace, r.name) for r in references.parse(words, "default")] == meant


@pytest.mark.parametrize("words", [["gadgets"], ["pod/a", "b"], ["pod/a/b"], ["pod/"]])
def test_words_that_mean_nothing_are_refused(words):
    with pytest.raises(ConfigError):
        references.parse(words, "default")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("solo", ("default", "solo")),
        ("pod/solo", ("default", "solo")),
        ("pod/default/solo", ("default", "solo")),
        ("deploy/web", ("default", "web-b")),
        ("svc/shop", ("default", "web-b")),
    ],
)
def test_a_pod_is_meant_by_name_or_by_what_owns_it_and_then_a_ready_one(word, meant):
    assert references.pod(Api(), word, "default") == meant


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("web", "there is no pod 'web' in namespace 'default'; did you mean deployment/web?"),
        ("shop", "there is no pod 'shop' in namespace 'default'; did you mean service/shop?"),
        ("none", "there is no pod 'none' in namespace 'default'"),
        ("deploy/gone", "no pod of deployment/gone is ready"),
        ("svc/bare", "service/bare has no selector by labels"),
        ("node/node-1", "'node/node-1': a node has no pods"),
        ("a/b/c/d", "'a/b/c/d' names no pod"),
    ],
)
def test_what_names_no_pod_is_told_with_what_may_have_been_meant(word, told):
    with pytest.raises(PodwireError) as caught:
        references.pod(Api(), word, "default")
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    ("target", "full"),
    [
        ("svc/shop", "svc/default/shop"),
        ("service/shop:80", "svc/default/shop:80"),
        ("svc/other/shop:http", "svc/other/shop:http"),
        ("deployment/web", "pod/default/web-b"),
        ("10.96.0.10", "10.96.0.10"),
        ("10.96.0.10:80", "10.96.0.10:80"),
        ("node/node-2", "node/node-2"),
        ("outside", "outside"),
    ],
)
def test_the_ends_of_a_trace_are_sent_in_full(target, full):
    assert references.trace_request(Api(), "solo", target, "default", port=None, proto=None) == {"from": "pod/default/solo", "to": full}


def test_a_port_may_be_given_once_as_number_or_name():
    assert references.trace_request(Api(), "solo", "svc/shop", "default", port="80", proto="udp")["port"] == 80
    assert references.trace_request(Api(), "solo", "svc/shop", "default", port="http", proto=None)["port"] == "http"
    with pytest.raises(ConfigError, match="TO names a port already"):
        references.trace_request(Api(), "solo", "svc/shop:80", "default", port="80", proto=None)
