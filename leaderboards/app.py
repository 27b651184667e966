"""The dashboard: one page per file in pages/, its question in the file's docstring.

Run by `assay board serve`, which names the board in ASSAY_BOARD. A new page is a new file:
it appears after the ones in FIRST. Its docstring must not come from data: it is Markdown.
"""

import ast
from pathlib import Path

import streamlit as st

FIRST = ["leaderboard", "run", "contamination"]


def page_files() -> list[Path]:
    """The pages in the order of the menu."""
    found = {path.stem: path for path in sorted(Path(__file__).with_name("pages").glob("*.py"))}
    found.pop("__init__", None)
    return [found.pop(name) for name in FIRST] + list(found.values())


def question(path: Path) -> str:
    """The first line of a page's docstring: what it answers."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


if __name__ == "__main__":
    st.set_page_config(page_title="Assay", layout="wide")
    pages = [
        st.Page(path, title=path.stem.capitalize(), url_path=path.stem, default=number == 0)
        for number, path in enumerate(page_files())
    ]
    here = st.navigation(pages, position="top")
    st.subheader(here.title)
    st.caption(question(next(p for p in page_files() if p.stem.capitalize() == here.title)))
    here.run()
