"""The Hugging Face hub: whose licence something carries, and putting a folder there."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rft.types import RftError

_LICENCE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Licence:
    """What a card says of its licence; never guessed."""

    license: str | list[str] | None = None
    """As the hub names it, such as apache-2.0; None where nobody says."""
    license_name: str | None = None
    """With `other`."""
    license_link: str | None = None
    source: str = ""
    """Where that stands, or why it is not known."""

    def front(self) -> dict[str, Any]:
        """The lines of a card's front matter."""
        told = {name: value for name, value in asdict(self).items() if name != "source" and value}
        return told if self.license else {"license": "unknown"}

    def __str__(self) -> str:
        if not self.license:
            return f"unknown ({self.source})"
        name = ", ".join([self.license] if isinstance(self.license, str) else self.license)
        own = f" ({self.license_name})" if self.license_name else ""
        link = f", {self.license_link}" if self.license_link else ""
        return f"{name}{own}{link}, by {self.source}"


def licence(place: str | None, revision: str | None = None, kind: str = "model") -> Licence:
    """What the card of a model or data set says.

    place: its folder, or its name on the hub; None where neither is known. kind: model or dataset.
    """
    from huggingface_hub import RepoCard, hf_hub_download

    if place is None:
        return Licence(source="where it comes from is not known")
    try:
        if Path(place).exists():
            path = Path(place) / "README.md"
            if not path.is_file():
                return Licence(source=f"{place} has no README.md")
        else:
            path = Path(hf_hub_download(place, "README.md", repo_type=kind, revision=revision))
        data = RepoCard(path.read_text(), ignore_metadata_errors=True).data.to_dict()
    except (
        Exception
    ) as fault:  # of YAML, or of an HTTP library that changes with the hub's versions
        why = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        return Licence(source=f"the card of {place} cannot be read: {why}")
    told = {name: data[name] for name in _LICENCE if data.get(name)}
    where = path if Path(place).exists() else f"the card of {place}"
    if "license" not in told:
        return Licence(source=f"{where} names none")
    return Licence(**told, source=str(where))


def is_on_hub(place: str | None) -> bool:
    """Whether something is named as the hub names it. The hub refuses a card that links to a folder."""
    return place is not None and not Path(place).exists() and not place.startswith((".", "/"))


def check(repo: str) -> None:
    """Raises RftError for a name that is none, or where there is no token to write with."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        fault = "" if repo.count("/") == 1 else f"{repo!r} has no owner"
    except ValueError as told:
        fault = str(told).splitlines()[0]
    if fault:
        raise RftError(f"--push: {fault}: write owner/name")
    if not get_token():
        raise RftError(
            "--push: no token for the hub: make one with write access at "
            "https://huggingface.co/settings/tokens, and give it with `hf auth login` or in HF_TOKEN"
        )


def push(folder: Path, repo: str, kind: str) -> str:
    """Puts a folder's files in the hub's repository `repo`, which is made, private, if there is none.
    Returns the commit's address. HF_ENDPOINT names another hub.

    Raises RftError with what the hub says.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, repo_type=kind, folder_path=folder, commit_message="Export from rft"
        )
    except Exception as fault:  # as above
        why = " ".join(str(fault).split())[:500].rstrip(".") or type(fault).__name__
        raise RftError(
            f"--push: {repo} at {api.endpoint}: {why}. {folder} is complete: give the same command again to "
            "push it"
        ) from fault
    return str(done.commit_url)
