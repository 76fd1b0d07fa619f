"""Licences are carried or said to be unknown, and a push says what the hub says."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from rft import hub
from rft.hub import Licence
from rft.types import RftError
from tests.unit._hub import hub as stand_in

LICENCES = [
    ("---\nlicense: apache-2.0\n---\n# A model\n", {"license": "apache-2.0"}, "apache-2.0, by "),
    (
        "---\nlicense: other\nlicense_name: mine\nlicense_link: https://a.b/c\n---\n",
        {"license": "other", "license_name": "mine", "license_link": "https://a.b/c"},
        "other (mine), https://a.b/c, by ",
    ),
    ("---\nlicense: [mit, cc-by-4.0]\n---\n", {"license": ["mit", "cc-by-4.0"]}, "mit, cc-by-4.0"),
    ("---\ntags: [a]\n---\nMIT, says the text.", {"license": "unknown"}, "names none"),
    ("No front matter.", {"license": "unknown"}, "names none"),
    ("---\n- a list\n---\n", {"license": "unknown"}, "cannot be read: repo card metadata"),
    ("---\nlicense: [\n---\n", {"license": "unknown"}, "cannot be read: "),
    (None, {"license": "unknown"}, "has no README.md"),
]


@pytest.mark.parametrize("card, front, told", LICENCES)
def test_a_folder_says_its_licence(tmp_path: Path, card, front, told) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = hub.licence(str(tmp_path))
    assert found.front() == front
    assert told in str(found)


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")

    def download(repo: str, name: str, repo_type: str, revision: str | None) -> str:
        assert (repo, name, repo_type, revision) == ("a/b", "README.md", "dataset", "v1")
        return str(tmp_path / "README.md")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert str(hub.licence("a/b", "v1", "dataset")) == "mit, by the card of a/b"

    def fails(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    assert str(hub.licence("a/b")) == "unknown (the card of a/b cannot be read: no network)"
    assert hub.licence(None) == Licence(source="where it comes from is not known")


@pytest.mark.parametrize(
    "place, on_hub", [("Qwen/Qwen2.5-0.5B", True), ("gpt2", True), ("./mine", False), ("/a", False),
                      (None, False), (".", False)],
)  # fmt: skip
def test_what_the_hub_can_link_to(place, on_hub) -> None:
    assert hub.is_on_hub(place) == on_hub


@pytest.mark.parametrize(
    "repo, told", [("mine", "has no owner: write owner/name"), ("a/b/c", "write owner/name"),
                   ("a b/c", "write owner/name")],
)  # fmt: skip
def test_names_that_are_none(monkeypatch: pytest.MonkeyPatch, repo, told) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    with pytest.raises(RftError, match=told):
        hub.check(repo)
    hub.check("me/x")


def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(RftError, match="no token for the hub: make one with write access"):
        hub.check("me/x")


PUSH = """
import sys
from pathlib import Path
from rft import hub
from rft.types import RftError
try:
    print(hub.push(Path(sys.argv[1]), "me/x", sys.argv[2]))
except RftError as fault:
    print(fault)
"""


def pushed(folder: Path, url: str, kind: str = "model") -> str:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), kind],
        env={**environment, "HF_HOME": str(folder.parent / "home")},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_every_file_arrives(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "train.jsonl").write_text('{"a": "é"}\n')
    with stand_in() as server:
        assert pushed(folder, server.url, kind) == f"{server.url}/me/x/commit/1"
    assert server.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert server.made["name"] == "x" and server.made["organization"] == "me"
    assert server.made.get("private") or server.made.get("visibility") == "private"
    assert server.made.get("type", "model") == kind
    assert "POST /api/validate-yaml" in server.calls
    for call in ("/api/repos/create", f"/api/{kind}s/me/x/commit/main"):
        assert server.calls[f"POST {call}"] == "Bearer hf_x"


def test_what_the_hub_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    with stand_in(refuses="You may not write here") as server:
        told = pushed(folder, server.url)
    assert told.startswith(f"--push: me/x at {server.url}: ") and "\n" not in told
    assert "You may not write here" in told
    assert told.endswith(f"{folder} is complete: give the same command again to push it")


def test_no_hub_at_that_address(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("# Mine\n")
    told = pushed(folder, "http://127.0.0.1:9")
    assert told.startswith("--push: me/x at http://127.0.0.1:9: ") and "\n" not in told
