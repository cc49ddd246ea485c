"""The proxy's configuration. Decides which settings exist and what they must look like.

Keys are KubeProxyConfiguration's own (kubeproxy.config.k8s.io/v1alpha1), also where a cluster file writes them; an unknown
key is an error that names the nearest one, and a key that is known but has no effect here is an error too: a setting
that silently does nothing is worse than none. Must not know the rest of the cluster file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.errors import ConfigError
from emu.model.quantities import duration
from emu.wire.addr import Ip, Network

MODES = ("iptables", "nftables")
MODES_PLANNED = ("ipvs", "ebpf")
DETECT_LOCAL_MODES = ("ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
NOT_EMULATED = frozenset(
    "bindAddress bindAddressHardFail healthzBindAddress metricsBindAddress enableProfiling hostnameOverride clientConnection "
    "configSyncPeriod conntrack ipvs logging oomScoreAdj portRange showHiddenMetricsForVersion winkernel "
    "windowsRunAsService featureGates".split()
)
LOOPBACK_NETWORK = Network.parse("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class NftablesConfig:
    """`nftables:`; periods in seconds. The mark is bit `masquerade_bit` of the packet's firewall mark."""

    masquerade_bit: int = 14
    masquerade_all: bool = False
    min_sync_period: float = 1.0
    sync_period: float = 30.0

    @property
    def masquerade_mark(self) -> int:
        return 1 << self.masquerade_bit


@dataclass(frozen=True, slots=True)
class IptablesConfig(NftablesConfig):
    """`iptables:`; all that `nftables:` has, and more."""

    localhost_node_ports: bool = True


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A checked KubeProxyConfiguration.

    `cluster_cidrs` is `clusterCIDR` (one a family, () for none); `node_port_addresses` is () for every address of the
    node, and `primary_only` is its keyword `primary`.
    """

    mode: str = "iptables"
    cluster_cidrs: tuple[Network, ...] = ()
    detect_local_mode: str = "ClusterCIDR"
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    node_port_addresses: tuple[Network, ...] = ()
    primary_only: bool = False
    iptables: IptablesConfig = field(default_factory=IptablesConfig)
    nftables: NftablesConfig = field(default_factory=NftablesConfig)
    service_cidrs: tuple[Network, ...] = ()

    @property
    def min_sync_period(self) -> float:
        """Of the mode that is in use."""
        return self.nftables.min_sync_period if self.mode == "nftables" else self.iptables.min_sync_period

    @classmethod
    def parse(cls, value: str | Mapping[str, Any], *, where: str = "proxy", cluster_cidr: str = "", service_cidr: str = "") -> ProxyConfig:
        """Check a mode's name or a mapping; ConfigError says where in the file, from `where` on.

        `cluster_cidr` is the default of `clusterCIDR` (the cluster's pod network); an explicit "" means none. `service_cidr` is what
        ServiceCIDR objects would say.
        """
        mapping = {"mode": value} if isinstance(value, str) else value
        fields = _read(mapping, _KEYS, where)
        fields.setdefault("cluster_cidrs", _cidrs(cluster_cidr, f"{where}.clusterCIDR"))
        addresses = fields.pop("addresses", None)
        if addresses is not None:
            fields["node_port_addresses"], fields["primary_only"] = addresses
        config = cls(**fields, service_cidrs=_cidrs(service_cidr, f"{where}.serviceCIDR"))
        _check_detector(config, where)
        return config

    def node_ports_on(self, node_ips: tuple[Ip, ...], family: int = 4) -> tuple[Ip, ...] | None:
        """The node's addresses that answer node ports; None for every local one (an address-type match in the rules)."""
        if self.primary_only or (self.mode == "nftables" and not self.node_port_addresses):  # its default
            return tuple(ip for ip in node_ips if (len(ip) == 4) == (family == 4))[:1]
        cidrs = [cidr for cidr in self.node_port_addresses if (len(cidr.address) == 4) == (family == 4)]
        if not cidrs or any(cidr.length == 0 for cidr in cidrs):
            return None
        return tuple(ip for ip in node_ips if any(ip in cidr for cidr in cidrs))

    def localhost_node_ports(self, family: int = 4) -> bool:
        """Do node ports answer on 127.0.0.1? Then the node also needs `net.ipv4.conf.all.route_localnet`. Never for IPv6."""
        if self.mode != "iptables" or family != 4 or not self.iptables.localhost_node_ports or self.primary_only:
            return False
        cidrs = [cidr for cidr in self.node_port_addresses if len(cidr.address) == 4]
        return not cidrs or any(cidr.length == 0 or cidr.address in LOOPBACK_NETWORK for cidr in cidrs)


Reader = Callable[[Any, str], Any]


def _read(value: object, keys: Mapping[str, tuple[str, Reader]], where: str) -> dict[str, Any]:
    """Read a mapping by a table of key -> (field, reader); fields of absent keys are absent."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a mapping, not {value!r}", where=where)
    fields: dict[str, Any] = {}
    for key, item in value.items():
        if key in ("apiVersion", "kind"):
            continue
        if key not in keys:
            raise ConfigError(_unknown(str(key), keys), where=f"{where}.{key}")
        name, reader = keys[key]
        read = reader(item, f"{where}.{key}")
        fields.update(read) if name == "*" else fields.__setitem__(name, read)
    return fields


def _unknown(key: str, keys: Mapping[str, object]) -> str:
    if key in NOT_EMULATED:
        return "a setting of kube-proxy's that is not emulated yet"
    nearest = difflib.get_close_matches(key, keys, 1, 0.0)[0]
    return f"unknown key; did you mean {nearest}?"


def _mode(value: object, where: str) -> str:
    if value in MODES_PLANNED:
        raise ConfigError(f"mode {value} is not emulated yet; {' and '.join(MODES)} are", where=where)
    if value not in (*MODES, ""):
        raise ConfigError(f"{value!r} is no proxy mode; {' and '.join(MODES)} are", where=where)
    return str(value or "iptables")  # kube-proxy's own default on Linux


def _network(text: object, where: str) -> Network:
    try:
        return Network.parse(str(text))
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a CIDR: {error}", where=where) from None


def _cidrs(value: object, where: str) -> tuple[Network, ...]:
    """`10.244.0.0/16`, or one of each family with a comma between."""
    if not isinstance(value, str):
        raise ConfigError(f"must be a text such as 10.244.0.0/16, not {value!r}", where=where)
    networks = tuple(_network(part.strip(), where) for part in value.split(",") if part.strip())
    if len({len(network.address) for network in networks}) != len(networks):
        raise ConfigError("may hold one CIDR of each IP family", where=where)
    return networks


def _detect_mode(value: object, where: str) -> str:
    if value not in DETECT_LOCAL_MODES:
        raise ConfigError(f"{value!r} is not one of {', '.join(DETECT_LOCAL_MODES)}", where=where)
    return str(value)


def _addresses(value: object, where: str) -> tuple[tuple[Network, ...], bool]:
    """CIDRs, or the single keyword `primary`."""
    if not isinstance(value, list):
        raise ConfigError(f"must be a list of CIDRs or [primary], not {value!r}", where=where)
    if value == ["primary"]:
        return (), True
    return tuple(_network(item, f"{where}[{i}]") for i, item in enumerate(value)), False


def _bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"must be true or false, not {value!r}", where=where)
    return value


def _bit(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 31:
        raise ConfigError(f"must be a number from 0 to 31, not {value!r}", where=where)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"must be a name, not {value!r}", where=where)
    return value


def _check_detector(config: ProxyConfig, where: str) -> None:
    """A detector that names a device must be told its name."""
    if config.detect_local_mode == "BridgeInterface" and not config.bridge_interface:
        raise ConfigError("BridgeInterface needs detectLocal.bridgeInterface", where=f"{where}.detectLocalMode")
    if config.detect_local_mode == "InterfaceNamePrefix" and not config.interface_name_prefix:
        raise ConfigError("InterfaceNamePrefix needs detectLocal.interfaceNamePrefix", where=f"{where}.detectLocalMode")


def _iptables(value: object, where: str) -> IptablesConfig:
    return IptablesConfig(**_read(value, _IPTABLES_KEYS, where))


def _nftables(value: object, where: str) -> NftablesConfig:
    return NftablesConfig(**_read(value, _NFTABLES_KEYS, where))


def _detect_local(value: object, where: str) -> dict[str, Any]:
    return _read(value, _DETECT_LOCAL_KEYS, where)


_IPTABLES_KEYS: dict[str, tuple[str, Reader]] = {
    "masqueradeBit": ("masquerade_bit", _bit),
    "masqueradeAll": ("masquerade_all", _bool),
    "localhostNodePorts": ("localhost_node_ports", _bool),
    "minSyncPeriod": ("min_sync_period", duration),
    "syncPeriod": ("sync_period", duration),
}
_NFTABLES_KEYS: dict[str, tuple[str, Reader]] = {key: _IPTABLES_KEYS[key] for key in _IPTABLES_KEYS if key != "localhostNodePorts"}
_DETECT_LOCAL_KEYS: dict[str, tuple[str, Reader]] = {
    "bridgeInterface": ("bridge_interface", _text),
    "interfaceNamePrefix": ("interface_name_prefix", _text),
}
_KEYS: dict[str, tuple[str, Reader]] = {
    "mode": ("mode", _mode),
    "clusterCIDR": ("cluster_cidrs", _cidrs),
    "detectLocalMode": ("detect_local_mode", _detect_mode),
    "detectLocal": ("*", _detect_local),
    "nodePortAddresses": ("addresses", _addresses),
    "iptables": ("iptables", _iptables),
    "nftables": ("nftables", _nftables),
}
