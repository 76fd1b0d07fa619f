"""What the pages link to outside docs/ becomes part of the site (mkdocs.yml).

Pages are read in the repository too, so their links lead to where files lie: `../configs/gsm8k.yaml`,
and in README.md `docs/training.md`. The site knows only docs/. So each such file is put under `repo/` of
the site and links to it are turned there; what is not there stays as it is, and mkdocs' own check of links
names it. README.md and CONTRIBUTING.md come in as pages, so that their links are checked as well.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FRONT = ("README.md", "CONTRIBUTING.md")
OUTSIDE = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")
INSIDE = re.compile(r"(?<=\]\()docs/|(?<=src=\")docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = [Path(page.abs_src_path or "") for page in files.documentation_pages()]
    targets = {name for page in pages for name in OUTSIDE.findall(page.read_text())}
    for name in sorted({*targets, *FRONT}):
        if (ROOT / name).is_file():
            source = str(ROOT / name)
            files.append(File.generated(config, f"repo/{name}", abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    if page.file.src_uri.startswith("repo/"):
        return INSIDE.sub("../", markdown)
    return OUTSIDE.sub(r"repo/\1", markdown)
