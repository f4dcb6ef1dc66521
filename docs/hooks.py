"""What mkdocs does not do by itself: pages from outside docs/, and the generated parts of the reference."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
}
"""Pages of the site that lie outside docs/."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)#\s]+")
ENTRY = re.compile(r"^::: fusion_onnx\.(\w+)$|^## .*\{#fusion_onnx\.(\w+)\}$", re.M)
STRATEGY = """
## {name}

::: fusion_onnx.fusions.{name}
    options: {{show_root_heading: false, show_root_toc_entry: false, heading_level: 3, filters: [Fusion$]}}
"""
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.M)


def address(path: Path) -> str:
    """Return where the site has a file of the repository."""
    return PAGES.get(path) or path.relative_to(DOCS if DOCS in path.parents else ROOT).as_posix()


def links(page: Path) -> Iterator[Path]:
    """Yield the files that a page links to."""
    for target in LINK.findall(page.read_text("utf-8")):
        path = Path(os.path.normpath(page.parent / target))
        if path.is_file():
            yield path


def reference() -> dict[str, list[str]]:
    """Return the public names that each page of the reference has an entry for."""
    entries = {page.name: ENTRY.findall(page.read_text("utf-8")) for page in sorted((DOCS / "api").glob("*.md"))}
    return {page: ["".join(entry) for entry in found] for page, found in entries.items() if found}


def names(nav: Any) -> str:
    """Return the table of the public names, page by page in the navigation's order."""
    lines = ["| page | names |", "|---|---|"]
    for page, found in sorted(reference().items(), key=lambda entry: str(nav).find(f"api/{entry[0]}")):
        title = (DOCS / "api" / page).read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"| [{title}]({page}) | {', '.join(f'[`{name}`][fusion_onnx.{name}]' for name in found)} |")
    return "\n".join(lines)


def strategies() -> str:
    """Return what the reference says of each strategy: its file's docstring, and its class."""
    files = (ROOT / "fusion_onnx" / "fusions").glob("[!_]*.py")
    return "".join(STRATEGY.format(name=path.stem) for path in sorted(files))


def runtimes() -> str:
    """Return the table of the matrix's runtimes."""
    from fusion_onnx.verification import backends

    rows = [f"| `{name}` | {backends.get(name).title} | `{backends.get(name).install}` |" for name in backends.names()]
    return "\n".join(["| runtime | | comes with |", "|---|---|---|", *rows])


def commands() -> str:
    """Return what the command line says of itself, command by command."""
    command = [sys.executable, "-m", "typer", "fusion_onnx.cli", "utils", "docs", "--name", "fusion-onnx"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    text = re.sub(r"\*\*Commands\*\*:.*?(?=^## )", "", text.partition("\n")[2], count=1, flags=re.M | re.S)
    text = re.sub(r'<span style="font-weight: bold">(.*?)</span>', r"`\1`", text)
    return text.replace("&#x27;", "'").replace("&quot;", '"')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, and each file that a page links to, and so on from those that are pages."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    pages = [Path(str(page.abs_src_path)) for page in files.documentation_pages()]
    for page in pages:
        for path in links(page):
            if DOCS not in path.parents and files.get_file_from_path(address(path)) is None:
                inclusion = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, address(path), abs_src_path=str(path), inclusion=inclusion))
                pages += [path] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages, and write the generated parts."""
    source, folder = Path(page.file.abs_src_path), os.path.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(source.parent / match[0]))
        return os.path.relpath(address(path), folder or ".") if path.is_file() else match[0]

    parts = {
        "<!-- names -->": lambda: names(config.nav),
        "<!-- each strategy -->": strategies,
        "<!-- runtimes -->": runtimes,
        "<!-- commands -->": commands,
    }
    for mark, part in parts.items():
        if mark in markdown:
            markdown = markdown.replace(mark, part())
    return LINK.sub(link, markdown)


class Docstrings(griffe.Extension):
    """Mends what a reader of source text alone, as griffe is, takes for something else than Python and its users do."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Make examples in a docstring code, which Markdown takes for quotations."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(lambda example: re.sub("(?m)^", "    ", example[0]), obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Take a public function for itself where griffe takes it for the module of the same name that defines it."""
        for name, member in list(pkg.members.items()):
            try:
                target = loader.modules_collection[member.target_path] if member.is_alias else member
            except (KeyError, griffe.AliasResolutionError):  # from another package
                continue
            if target.is_module and name in target.members:
                pkg.set_member(name, griffe.Alias(name, target.members[name], runtime=False, parent=pkg))
