"""Reading manifests: everything kubectl reads, and every failure names its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import ConfigError
from emu.model import manifest

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1", "line 2"),
        ("apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: x}\n", 'line 3, column 1: not valid YAML: key "kind" already set in map'),
        (SERVICE.replace("{port: 80}", "{port: 80, port: 81}"), 'key "port" already set'),
        ("- 1\n", "document 1: not a Kubernetes object"),
        ("kind: Pod\nmetadata: {name: x}\n", "apiVersion: Required value"),
        ("apiVersion: v1\nkind: Pod\n", "metadata.name: Required value"),
        (SERVICE + "---\n" + SERVICE.replace("Service", "Servcie"), "Servcie web: no matches for kind"),
        ("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n", "items[0]: Pod: metadata.name"),
    ],
)
def test_a_broken_manifest_is_refused_with_file_and_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)

    with pytest.raises(ConfigError) as caught:
        manifest.read([file])
    assert str(file) in str(caught.value)
    assert problem in str(caught.value)


def test_documents_lists_and_directories_give_their_objects_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}')
    (tmp_path / "a.yaml").write_text(
        SERVICE + "---\n# nothing\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: p}}\n"
    )
    (tmp_path / "readme.txt").write_text("no manifest")

    found = manifest.read([tmp_path])

    assert [(manifest.describe(m.object), Path(m.source).name, m.document) for m in found] == [
        ("Service web", "a.yaml", 1),
        ("Pod p", "a.yaml", 3),
        ("ConfigMap c", "b.json", 1),
    ]


def test_values_read_as_json_has_them() -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {1: a, on: b, day: 2026-01-02}\n"

    assert manifest.parse(text)[0].object["data"] == {"1": "a", "true": "b", "day": "2026-01-02"}


def test_merge_keys_may_be_overridden() -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: &m {name: c, labels: {a: b}}\nx: {<<: *m, name: d}\n"

    assert manifest.parse(text)[0].object["x"] == {"name": "d", "labels": {"a": "b"}}


def test_a_missing_file_and_an_empty_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        manifest.read([tmp_path / "none.yaml"])
    with pytest.raises(ConfigError, match="no manifest in it"):
        manifest.read([tmp_path])
