"""Chain names against names published by others: kube-proxy's own rule tests, dumps of real nodes in blog posts."""

from __future__ import annotations

import pytest

from emu.netfilter.skb import TCP, UDP
from emu.proxy.names import ServicePortName, endpoint_chain, port_hash

PUBLISHED_PORTS = [
    # kube-proxy's own rule tests
    (("ns1", "svc1", "p80", TCP), "XPGD46QRK7WJZT7O"),
    (("ns2", "svc2", "p80", TCP), "GNZBNJ2PO5MGZ6GT"),
    (("ns3", "svc3", "p80", TCP), "X27LE4BHSL4DOUIK"),
    (("ns4", "svc4", "p80", TCP), "4SW47YFZTEDKD3PK"),
    (("ns5", "svc5", "p80", TCP), "NUKIZ6OKUXPJNT4C"),
    # every kubeadm cluster
    (("default", "kubernetes", "https", TCP), "NPX46M4PTMTKRN6Y"),
    (("kube-system", "kube-dns", "dns", UDP), "TCOU7JCQXEZGVUNU"),
    (("kube-system", "kube-dns", "dns-tcp", TCP), "ERIFXISQEP7F7OF4"),
    (("kube-system", "kube-dns", "metrics", TCP), "JD5MR3NA4I4DYORP"),
    # an unnamed port
    (("default", "nginx", "", TCP), "2CMXP7HKUVJN7L6M"),
]

PUBLISHED_ENDPOINTS = [
    (("ns1", "svc1", "p80", TCP), "10.180.0.1:80", "KUBE-SEP-SXIVWICOYRO3J4NJ"),
    (("ns2", "svc2", "p80", TCP), "10.180.0.2:80", "KUBE-SEP-RS4RBKLTHTF2IUXJ"),
    (("ns3", "svc3", "p80", TCP), "10.180.0.3:80", "KUBE-SEP-OYPFS5VJICHGATKP"),
    (("ns4", "svc4", "p80", TCP), "10.180.0.4:80", "KUBE-SEP-UKSFD7AGPMPPLUHC"),
    (("ns4", "svc4", "p80", TCP), "10.180.0.5:80", "KUBE-SEP-C6EBXVWJJZMIWKLZ"),
    (("ns5", "svc5", "p80", TCP), "10.180.0.3:80", "KUBE-SEP-I77PXRDZVX7PMWMN"),
    (("default", "nginx", "", TCP), "10.244.1.5:80", "KUBE-SEP-IZW656N5ZXYN5BEC"),
]


@pytest.mark.parametrize(("name", "digest"), PUBLISHED_PORTS)
def test_a_service_port_has_the_hash_that_real_nodes_show(name, digest):
    assert port_hash(ServicePortName(*name)) == digest


@pytest.mark.parametrize(("name", "endpoint", "chain"), PUBLISHED_ENDPOINTS)
def test_an_endpoint_has_the_chain_that_real_nodes_show(name, endpoint, chain):
    assert endpoint_chain(ServicePortName(*name), endpoint) == chain


def test_chain_names_fit_what_iptables_allows():
    assert len(endpoint_chain(ServicePortName("n" * 63, "s" * 63, "p" * 15, TCP), "[fd00::1]:65535")) <= 28


def test_a_service_port_prints_without_a_colon_when_it_has_no_name():
    assert str(ServicePortName("default", "nginx", "", TCP)) == "default/nginx"
    assert str(ServicePortName("default", "nginx", "http", TCP)) == "default/nginx:http"
