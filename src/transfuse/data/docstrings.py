"""A labelled text corpus that every installation has: sentences from the docstrings of installed libraries.

The class of a sentence is the subject of the module it documents (linear algebra, statistics, ...). One library's
subjects are the in-distribution classes; the same subjects in other libraries are another domain (background shift);
the first library's other subjects are new classes (semantic shift); the standard library is neither (cross-task).

The choice was made by this rule, before any score was seen: SciPy is the in-distribution library because it is the one
with the most documented subjects; its in-distribution subjects are those that NumPy, scikit-learn or PyTorch
document in a module of their own (table `SUBJECTS`); its held-out subjects are the rest. Sources are parsed, never
imported. Names of modules and functions, markup, formulas and code are taken out of all texts alike, so that neither
the class nor the library can be read off them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transfuse.data.text import Texts, prose_sentences, unique
from transfuse.errors import UserError

# subject -> its place in SciPy, and the places of the same subject in other libraries
SUBJECTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "linear algebra": ("scipy/linalg", ("numpy/linalg", "torch/linalg", "torch/_linalg_utils.py")),
    "fourier transform": ("scipy/fft", ("numpy/fft", "torch/fft")),
    "statistics": ("scipy/stats", ("torch/distributions", "sklearn/mixture", "sklearn/covariance")),
    "optimisation": ("scipy/optimize", ("torch/optim",)),
    "clustering": ("scipy/cluster", ("sklearn/cluster",)),
    "special functions": ("scipy/special", ("torch/special",)),
}
HELD_OUT = ("signal", "sparse", "interpolate", "io", "spatial", "integrate", "ndimage")
STANDARD_LIBRARY = ("asyncio", "email", "http", "logging", "unittest", "xml", "json", "multiprocessing", "importlib")

_SECTIONS = re.compile(r"\n([A-Z][A-Za-z ]+)\n[-=~]{3,}[ ]*(?=\n|$)")
_PROSE = ("", "Notes", "Description")
_ARGUMENTS = re.compile(r"^(args|arguments|keyword args|returns?|yields|raises|examples?|shape|usage)\s*:+$", re.I)
_SKIPPED = {"tests", "test", "testing", "_lib", "externals", "_vendor", "idle_test", "benchmarks"}


@dataclass(frozen=True)
class Docstrings:
    """The four parts of the corpus, and what they were read from.

    Attributes:
        inside: in-distribution sentences, labelled by subject.
        background: the same subjects in other libraries.
        semantic: SciPy's other subjects.
        cross_task: the standard library, labelled by package.
        versions: of the libraries that were read.
        digest: of all texts and labels: sixteen hexadecimal digits.
    """

    inside: Texts
    background: Texts
    semantic: Texts
    cross_task: Texts
    versions: Mapping[str, str]
    digest: str


@cache
def docstring_corpus(most: int | None = None) -> Docstrings:
    """Read the corpus from the installed libraries (about eight seconds in full; nothing is imported).

    Args:
        most: stop reading a subject after this many sentences, for dry runs.

    Raises:
        UserError: a library is missing, or holds no sources.
    """
    packages = {name: _package_folder(name) for name in ("scipy", "numpy", "sklearn", "torch")}
    inside = _labelled(packages, {subject: (own,) for subject, (own, _) in SUBJECTS.items()}, most)
    others = _labelled(packages, {subject: others for subject, (_, others) in SUBJECTS.items()}, most)
    semantic = _labelled(packages, {name: (f"scipy/{name}",) for name in HELD_OUT}, most)
    standard = {name: Path(sysconfig.get_path("stdlib")) / name for name in STANDARD_LIBRARY}
    cross = _labelled(standard, {name: (name,) for name in STANDARD_LIBRARY}, most)
    parts = (inside, others.without(inside), semantic.without(inside), cross.without(inside))
    for name, part in zip(("in-distribution", "background", "semantic", "cross-task"), parts, strict=True):
        if len(part) < 100:
            raise UserError(
                f"the installed libraries give {len(part)} {name} docstring sentences", "at least 100",
                "install scipy, numpy, scikit-learn and torch with their sources",
            )  # fmt: skip
    named = {"scipy": "scipy", "numpy": "numpy", "sklearn": "scikit-learn", "torch": "torch"}
    versions = {name: importlib.metadata.version(project) for name, project in named.items()}
    digest = hashlib.sha256()
    for part in parts:
        digest.update("\n".join((*part.texts, *part.labels, "")).encode())
    return Docstrings(*parts, versions=versions, digest=digest.hexdigest()[:16])


def docstrings(source: str) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, and texts that are attached by `add_docstr` calls."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    pending: list[ast.AST] = [tree]
    while pending:  # statements only: expressions hold no docstrings, and are most of a tree
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
        elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            yield from _attached(node.value)
        for name in ("body", "orelse", "handlers", "finalbody"):
            pending += getattr(node, name, ())


def _attached(call: ast.Call) -> Iterator[str]:
    if not _called(call).endswith(("add_docstr", "add_newdoc")):
        return
    for inner in call.args:  # the text may be wrapped, as in r"...".format(**notes)
        for part in ast.walk(inner):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
                yield _dedented(part.value)


def docstring_sentences(docstring: str) -> list[str]:
    """Prose sentences of one docstring (summary, description and notes), without names, markup and formulas."""
    pieces = _SECTIONS.split("\n" + docstring)
    sections = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    sentences = []
    for title, body in sections:
        if title not in _PROSE:
            continue
        prose = []
        for block in re.split(r"\n\s*\n", body.strip("\n")):
            if _ARGUMENTS.match(block.strip().split("\n")[0]):
                break  # Google style: what follows is indented and no prose
            prose.append(block)
        sentences += prose_sentences("\n\n".join(prose))
    return [clean for sentence in sentences if (clean := anonymous(sentence)) is not None]


def anonymous(sentence: str) -> str | None:
    """A sentence without markup, or None if too little of it is plain language.

    Quoted code, cross-references, formulas, dotted and underscored names, names with inner capitals, and the
    names of the libraries and subjects become the neutral word "this".
    """
    text = re.sub(r":\w+:`[^`]*`|``[^`]*``|`[^`]*`_?|\[\w+\]_|https?://\S+", " this ", sentence)
    text = re.sub(r"\b(numpy|scipy|sklearn|scikit-learn|torch|pytorch|tensors?|python)\b", " this ", text, flags=re.I)
    text = re.sub(r"\b[\w.]*(?:_|\w\.\w|[a-z][A-Z])[\w.]*(\(\))?", " this ", text)
    text = re.sub(r"(\bthis\b[\s,]*){2,}", "this ", text)
    text = re.sub(r"\s+([.,;:!?])", r"\1", " ".join(text.split()))
    words = text.split()
    plain = [word for word in words if re.fullmatch(r"[A-Za-z][A-Za-z'-]+[.,;:!?)]*", word)]
    return text if len(words) >= 6 and len(plain) >= 0.8 * len(words) else None


def _labelled(folders: Mapping[str, Path], places: Mapping[str, tuple[str, ...]], most: int | None) -> Texts:
    """Sentences from `places` (label -> paths that begin with a key of `folders`), in a fixed order."""
    rows = []
    for label, paths in places.items():
        found: list[str] = []
        for path in _sources(folders, paths):
            if most is not None and len(found) >= most:
                break
            for text in docstrings(path.read_text(encoding="utf-8", errors="replace")):
                found += docstring_sentences(text)
        rows += [(sentence, label) for sentence in found]
    return unique(rows)


def _sources(folders: Mapping[str, Path], paths: tuple[str, ...]) -> Iterator[Path]:
    for place in paths:
        package, _, rest = place.partition("/")
        root = folders[package] / rest if rest else folders[package]
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            if not _SKIPPED.intersection(path.relative_to(folders[package]).parts):
                yield path


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"the docstring corpus needs {name}, which is not installed", fix=f"pip install {name}")
    return Path(spec.origin).parent


def _called(node: ast.Call) -> str:
    function = node.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _dedented(text: str) -> str:
    """As a docstring: margins off, and without the signature that leads it."""
    import inspect

    lines = inspect.cleandoc(text).split("\n")
    while lines and (not lines[0].strip() or "->" in lines[0]):
        lines.pop(0)
    return "\n".join(lines)
