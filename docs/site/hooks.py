"""What MkDocs is told beyond mkdocs.yml: generated pages, the navigation, and links out of docs/.

All of it follows from the files that are there: a new page, folder or module needs no entry.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from xml.etree.ElementTree import Element

import configuration
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prose import escape

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("internal_rl", "envs")
DOCS = PurePosixPath("docs")
API = PurePosixPath("api")
ROOT = PurePosixPath()
README = PurePosixPath("README.md")
CHANGELOG = PurePosixPath("CHANGELOG.md")
INDICES = ("index.md", "README.md", "__init__.py")
LINK = re.compile(r"\]\(([^)#\s]+)")
LISTED = re.compile(r"(?m)^\s*[|*-].*$")  # rows of tables, items of lists
ITEM = re.compile(r"([-*+]|1[.)]) ")
TABLE_RULE = re.compile(r"\|?[\s:|-]+\|[\s:|-]*$")

# Pages by what they are made from; paths from the top of the site and of the repository.
pages: dict[PurePosixPath, PurePosixPath] = {}


def on_config(config: MkDocsConfig) -> None:
    config.markdown_extensions.append(AsInRepository(config.repo_url))  # type: ignore[arg-type]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not in docs/, and order them all."""
    pages.clear()
    for file in files.documentation_pages():
        pages[DOCS / file.src_uri] = PurePosixPath(file.src_uri)

    def add(page: PurePosixPath, content: str) -> PurePosixPath:
        files.append(File.generated(config, str(page), content=content))
        return page

    for name in (README, CHANGELOG):
        content = (REPOSITORY / name).read_text(encoding="utf-8")
        pages[name] = add(PurePosixPath(str(name).lower()), content)
    for module in modules():
        pages[module] = add(api_page(module), f"::: {dotted(module)}\n")
    add(API / "index.md", api_index())
    # Links to the schema lead to the reference of its settings, not to that of its classes.
    schema = PurePosixPath(configuration.SOURCE)
    content = configuration.page((REPOSITORY / schema).read_text(encoding="utf-8"))
    pages[schema] = add(PurePosixPath("settings.md"), content)
    config.nav = section(ROOT, files)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> None:
    """Tell the extension which page is rendered next."""
    current = PurePosixPath(page.file.src_uri)
    sources = {made: source for source, made in pages.items()}
    for extension in config.markdown_extensions:
        if isinstance(extension, AsInRepository):
            extension.links.page, extension.links.source = current, sources.get(current)


# --- API reference ---


def modules() -> list[PurePosixPath]:
    """Every public module, as a path in the repository; a package is its __init__.py."""
    paths = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    inside = [PurePosixPath(path.relative_to(REPOSITORY).as_posix()) for path in paths]
    return sorted(module for module in inside if not any(map(is_private, module.parts)))


def is_private(part: str) -> bool:
    """Whether a file or folder is not for users, by its name."""
    return part.startswith(("_", ".")) and part != "__init__.py"


def dotted(module: PurePosixPath) -> str:
    """The name by which a module is imported."""
    path = module.parent if module.name == "__init__.py" else module.with_suffix("")
    return ".".join(path.parts)


def api_page(module: PurePosixPath) -> PurePosixPath:
    """Where the module is described."""
    return API / module.with_name(module.name.replace("__init__", "index")).with_suffix(".md")


def api_index() -> str:
    """The modules with the first paragraphs of their docstrings."""
    lines = ["# API reference", "", "| module | what it is |", "|---|---|"]
    for module in modules():
        tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
        doc = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
        link = f"[`{dotted(module)}`]({api_page(module).relative_to(API)})"
        lines.append(f"| {link} | {escape(doc)} |")
    return "\n".join(lines) + "\n"


# --- Navigation ---


def section(folder: PurePosixPath, files: Files) -> list[Any]:
    """The navigation of a folder: its index, pages as that lists them, then the rest."""
    found = {PurePosixPath(file.src_uri): file for file in files.documentation_pages()}
    inside = [page for page in found if folder in page.parents]
    index = next((folder / name for name in INDICES if folder / name in inside), None)
    text = (found[index].content_string or "") if index else ""
    source = {made: source for source, made in pages.items()}.get(index or folder)
    links = LINK.findall("\n".join(LISTED.findall(text)))
    linked = [target for link in links if (target := site_path(link, source))]

    def rank(child: PurePosixPath) -> tuple[int, PurePosixPath]:
        # A subfolder ranks by the first link to any page in it.
        ranks = (n for n, target in enumerate(linked) if child in (target, *target.parents))
        return next(ranks, len(linked)), child

    children = {folder / page.relative_to(folder).parts[0] for page in inside} - {index}
    entries: list[Any] = [{"Home": str(index)} if folder == ROOT else str(index)] if index else []
    for child in sorted(children, key=rank):
        below: Any = str(child) if child in found else section(child, files)
        if isinstance(below, list) and len(below) == 1:  # one page needs no level of its own
            below = below[0]
        entries.append({name: below} if (name := title(child, found)) else below)
    return entries


def title(entry: PurePosixPath, found: dict[PurePosixPath, File]) -> str | None:
    """How the navigation calls a page or folder; None: as its heading does."""
    if API in entry.parents:
        return entry.stem
    if entry in found:
        return "README" if entry == pages[README] else None
    for page in (entry / name for name in INDICES):
        if page in found and (heading := re.search(r"(?m)^# (.+)", found[page].content_string)):
            return heading[1]
    return entry.name.replace("_", " ").replace("-", " ").capitalize()


# --- Links, and what Python-Markdown reads differently ---


def site_path(link: str, source: PurePosixPath | None) -> PurePosixPath | None:
    """The page or file of the site that a relative link of a file of the repository leads to."""
    if source is None or urlsplit(link).scheme:
        return None
    target = PurePosixPath(os.path.normpath(source.parent / link))
    for path in (target, *(target / name for name in INDICES)):
        if path in pages:
            return pages[path]
    if DOCS in target.parents and (REPOSITORY / target).is_file():
        return target.relative_to(DOCS)
    return None


class AsInRepository(Extension):
    """Makes the Markdown of the repository come out as it does there."""

    def __init__(self, repo_url: str | None):
        super().__init__()
        self.links = Links(repo_url)

    def extendMarkdown(self, md: Markdown) -> None:
        """Register both processors: after fences are set aside, before MkDocs resolves links."""
        md.preprocessors.register(BlockStarts(md), "block_starts", 15)
        md.treeprocessors.register(self.links, "repository_links", 8)


class Links(Treeprocessor):
    """Leads relative links to the site's pages. What the site does not hold is linked in the
    repository, if that has an address, else its name remains. Dead links remain, for MkDocs to
    report."""

    def __init__(self, repo_url: str | None):
        super().__init__()
        self.repo_url = repo_url
        self.page = PurePosixPath()
        self.source: PurePosixPath | None = None

    def run(self, root: Element) -> None:
        """Rewrite the links of one page."""
        for element in root.iter():
            for attribute in ("href", "src"):
                link = urlsplit(element.get(attribute, ""))
                if self.source and link.path and not link.scheme and not link.netloc:
                    self.rewrite(element, attribute, link.path, link.fragment)

    def rewrite(self, element: Element, attribute: str, path: str, fragment: str) -> None:
        """Rewrite one link."""
        assert self.source
        if target := site_path(path, self.source):
            relative = os.path.relpath(target, self.page.parent)
            element.set(attribute, urlunsplit(("", "", relative, "", fragment)))
            return
        target = PurePosixPath(os.path.normpath(self.source.parent / path))
        if not (REPOSITORY / target).exists():
            return
        if self.repo_url:
            element.set(attribute, f"{self.repo_url.rstrip('/')}/blob/HEAD/{target}")
        else:
            element.tag = "span"
            del element.attrib[attribute]
            element.set("title", f"{target}, in the repository")


class BlockStarts(Preprocessor):
    """Lists and tables may follow a paragraph without an empty line, as in GitHub's Markdown."""

    def run(self, lines: list[str]) -> list[str]:
        """Put in the empty lines."""
        return list(self.separated(lines))

    def separated(self, lines: list[str]) -> Iterator[str]:
        """The lines, with one before each list or table that interrupts a paragraph."""
        before, in_paragraph = "", False
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            is_table = "|" in line and TABLE_RULE.match(following) is not None
            starts = ITEM.match(line) is not None or is_table
            if not before.strip():  # a block begins; an indented one belongs to an item before it
                in_paragraph = not starts and not line.startswith((" ", "|"))
            elif in_paragraph and starts:
                yield ""
                in_paragraph = False
            yield line
            before = line
