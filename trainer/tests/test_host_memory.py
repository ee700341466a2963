"""A pod whose memory a save would exceed, which the kernel ends without a word, and again at each restart."""

import pytest

from training import host_memory
from training.errors import UserError


@pytest.mark.parametrize(
    ("said", "expected"), [("1000\n", 1000), ("max\n", None), ("9223372036854771712\n", None), (None, None)]
)
def test_the_limit_is_the_pods_or_the_machines(tmp_path, monkeypatch, said, expected):
    monkeypatch.setattr(host_memory, "LIMITS", [])
    machine = host_memory.limit()
    assert machine > 10**9
    monkeypatch.setattr(host_memory, "LIMITS", [str(tmp_path / "none"), str(tmp_path / "limit")])
    if said:
        (tmp_path / "limit").write_text(said)
    assert host_memory.limit() == (expected or machine)


def test_8b_on_one_node_needs_96_gb_of_host_memory(monkeypatch):
    monkeypatch.setattr(host_memory, "limit", lambda: 96 * 10**9)
    host_memory.check(8 * 12 * 10**9)
    monkeypatch.setattr(host_memory, "limit", lambda: 95 * 10**9)
    with pytest.raises(
        UserError, match=r"96\.0 GB on this node, and the pod may have 95\.0 GB: raise memory_per_node_gb"
    ):
        host_memory.check(8 * 12 * 10**9)
