"""Writes the folder that the site is built from: the pages with links that hold there, and pages of the public names.

`scripts/docs` calls it, and then Zensical. README.md becomes the first page and docs/README.md the contents. A file of the
repository that a page links to becomes a page too, with its text.
Not here: the look and the navigation (docs/zensical.toml), and what a name does (its docstring).
"""

import argparse
import ast
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
NAMED = {"README.md": "index.md", "docs/README.md": "contents.md"}
LANGUAGES = {".py": "python", ".sbatch": "bash", ".sh": "bash", ".yaml": "yaml", ".json": "json", ".ipynb": "json"}

REFERENCE = {
    "jaxtrain": "Experiment, step and run",
    "jaxtrain.experiment": "Experiments",
    "jaxtrain.tasks": "Tasks and metrics",
    "jaxtrain.models": "Models",
    "jaxtrain.optimizers": "Optimizers",
    "jaxtrain.sharding": "Layouts",
    "jaxtrain.data": "Reading data",
    "jaxtrain.datasets": "Making datasets",
    "jaxtrain.datasets.filters": "Filters",
    "jaxtrain.generation": "Generation",
    "jaxtrain.reports": "Reports",
    "jaxtrain.reports.page": "Pages",
    "jaxtrain.runs.trackers": "Trackers",
}
"""Packages with public names, and the titles of their pages. A name of several is described with the last of them."""


def staged_path(file: Path) -> str:
    """Where a file of the repository is below `pages`: a page of docs at the top, a picture as it is."""
    name = file.relative_to(ROOT).as_posix()
    if name in NAMED:
        return NAMED[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"files/{name}.md"


def with_links(text: str, page: Path, linked: set[Path]) -> str:
    """The text of a page with its relative links as they are on the site; adds the files they lead to to `linked`.

    Raises:
        SystemExit: naming a link that leads to no file. Anchors are checked by the build.
    """

    def rewritten(match: re.Match[str]) -> str:
        if match[1].startswith(("https://", "http://")):
            return match[0]
        file = (page.parent / match[1]).resolve()
        if not file.is_file() or not file.is_relative_to(ROOT):
            raise SystemExit(f"{page}: the link to {match[1]} leads to no file of the repository")
        linked.add(file)
        here = os.path.dirname(staged_path(page))
        return f"]({os.path.relpath(staged_path(file), here or '.')}{match[2] or ''})"

    parts = BLOCK.split(text)
    return "".join(part if BLOCK.fullmatch(part) else LINK.sub(rewritten, part) for part in parts)


def source_page(file: Path) -> str:
    """A page that shows a file."""
    name, text = file.relative_to(ROOT).as_posix(), file.read_text()
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"# {name}\n\n{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}\n"


def public_names(package: str) -> dict[str, str]:
    """The names that a package exports, and the module of each: read off its `__init__.pyi`, else `__init__.py`."""
    folder = ROOT / package.replace(".", "/")
    file = next((each for each in (folder / "__init__.pyi", folder / "__init__.py") if each.exists()), None)
    if file is None:
        return {}
    found: dict[str, str] = {}
    exported: list[str] | None = None
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            exported = list(ast.literal_eval(node.value))
    if exported is None:
        exported = list(found) if file.suffix == ".pyi" else []
    return {name: found[name] for name in exported if name in found and not is_module(found[name])}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def reference_pages() -> dict[str, str]:
    """The text of each page of public names, by its path below `pages`."""
    pages: dict[str, str] = {}
    shown: dict[str, str] = {}
    for package, title in reversed(REFERENCE.items()):  # rooms before `jaxtrain`, which has names of many
        names = public_names(package)
        if not names:
            continue
        path = f"reference/{package}.md"
        lines = [f"# {title}", "", f"`from {package} import …`", ""]
        others = {name: shown[place] for name, place in names.items() if place in shown}
        if others:
            links = ", ".join(f"[{name}]({os.path.basename(page)})" for name, page in sorted(others.items()))
            lines += [f"It has these names too: {links}.", ""]
        for place in names.values():
            if place not in shown:
                shown[place] = path
                lines += [f"::: {place}", ""]
        pages[path] = "\n".join(lines)
    return dict(reversed(pages.items()))


def with_pages(config: str, pages: set[str], reference: list[str]) -> str:
    """The configuration with the entries of pages that are there, and those of the reference."""
    lines = []
    for line in config.splitlines():
        entry = re.fullmatch(r'\s*\{ "[^"]*" = "([^"]*)" \},', line)
        if line.strip().startswith("# the pages of scripts/stage_docs.py"):
            for path in reference:
                title = REFERENCE[path.removeprefix("reference/").removesuffix(".md")]
                lines.append(f'    {{ "{title}" = "{path}" }},')
        elif not entry or entry[1] in pages:
            lines.append(line)
    text = "\n".join(lines)
    return re.sub(r'\n *\{ "[^"]*" = \[\n *\] \},', "", text) + "\n"  # a section without a page


def stage(folder: Path) -> None:
    """Writes the folder anew.

    Raises:
        SystemExit: if the folder holds something else than a staged site.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "zensical.toml").exists():
        raise SystemExit(f"{folder} holds other files: name an empty folder")
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    pages.mkdir(parents=True)
    (folder / "repository").symlink_to(ROOT)
    written: dict[str, str] = {}
    waiting = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")}
    done: set[Path] = set()
    while waiting:
        file = waiting.pop()
        done.add(file)
        linked: set[Path] = set()
        path = staged_path(file)
        if file.suffix == ".md" and not path.startswith("files/"):
            written[path] = with_links(file.read_text(), file, linked)
        elif path.startswith("files/"):
            written[path] = source_page(file)
        else:
            (pages / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, pages / path)
        waiting |= linked - done
    reference = reference_pages()
    written |= reference
    for path, text in written.items():
        (pages / path).parent.mkdir(parents=True, exist_ok=True)
        (pages / path).write_text(text)
    (pages / "stylesheets").mkdir()
    shutil.copyfile(ROOT / "docs" / "site.css", pages / "stylesheets" / "site.css")
    config = (ROOT / "docs" / "zensical.toml").read_text()
    (folder / "zensical.toml").write_text(with_pages(config, set(written), list(reference)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="written anew")
    stage(parser.parse_args().folder)
