"""`podwire status`: what the controller says and what the supervisor sees, side by side; the latter alone if the former is silent.

A controller that the supervisor knows to be down or paused is not waited for; why a process is dead, its own log says best.
"""

from __future__ import annotations

import contextlib
from typing import Any

from emu.errors import PodwireError
from launcher import control, rundir, startup
from launcher.client import Client


def of(name: str, *, memory: bool = False) -> dict[str, Any]:
    """The cluster as JSON: `processes` (supervisor's view), `api` (or null and `problem`), nodes joined from both."""
    run = rundir.find(name)
    seen = control.ask(run, {"status": True})
    told: dict[str, Any] = {}
    nodes: dict[str, Any] = {}
    url, problem = None, None
    try:
        if seen["controller"]["state"] != "running":
            raise PodwireError(f"is {seen['controller']['state']}")
        client = Client.of(run)
        client.timeout = 5.0
        told = client.podwire("GET", "status")
        nodes = {node["metadata"]["name"]: node for node in client.list(startup.resource("nodes"))}
        url = client.url
    except PodwireError as error:
        problem = str(error)
    pods = {report["name"]: report["pods"] for report in told.get("nodes", ())}
    rows = [{**life, **_of_api(nodes.get(life["name"])), "pods": pods.get(life["name"])} for life in seen["nodes"]]
    for life in (seen["zygote"], seen["controller"], *seen["nodes"]):
        silent = life is seen["controller"] and url is None and life["deaths"]  # perhaps alive just now, to die of the same again
        if life["state"] == "dead" or silent:
            life["last_words"] = startup.last_words(run, life["name"])
    processes = {
        "guard": {"pid": seen["guard"]},
        "supervisor": {"pid": seen["pid"]},
        "zygote": seen["zygote"],
        "controller": seen["controller"],
    }
    if memory:
        _add_memory([*rows, *processes.values()])
    return {
        "name": seen["name"], "profile": seen["profile"], "url": url, "problem": problem, "run_dir": seen["run_dir"],
        "processes": processes, "controller": told, "nodes": rows,
    }  # fmt: skip


def _of_api(node: dict[str, Any] | None) -> dict[str, Any]:
    if node is None:
        return {"ready": None}
    addresses = [item["address"] for item in node.get("status", {}).get("addresses", ()) if item["type"] == "InternalIP"]
    return {"ready": startup.condition(node, "Ready"), "ip": addresses[0] if addresses else None, "pod_cidr": node["spec"].get("podCIDR")}


def _add_memory(processes: list[dict[str, Any]]) -> None:
    """`uss_mib`: what would be free again if the process ended."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.get("pid"):
                process["uss_mib"] = round(psutil.Process(process["pid"]).memory_full_info().uss / 2**20, 2)
