"""The documents against the code: links, options, names of files, imports, and what they show."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import write_api
from cli.lipcert_process import environment

from lipcert.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lipcert"
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), *PACKAGE.rglob("*.md"),
                 *(ROOT / "tests").rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
)  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS]
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_documents_are_there():
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert names >= {
        "README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md", "lipcert/ARCHITECTURE.md",
        "lipcert/API.md", "lipcert/GLOSSARY.md", "lipcert/SOUNDNESS.md", "lipcert/bounds/BOUNDS.md",
        "tests/README.md", "tests/benchmarks/RESULTS.md", "examples/README.md",
    }  # fmt: skip
    assert len(README.splitlines()) <= 180


@each_document
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"https?:", target):
            continue
        file, _, place = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert place in {anchor(heading) for heading in headings}, target


@each_document
def test_files_of_this_project_that_are_named_exist(path):
    """``tests/…`` and ``examples/…`` from its root, modules from ``lipcert`` or from beside."""
    kinds = [PACKAGE / "network" / name for name in ("activations", "operators")]
    folders = [p for home in (PACKAGE, ROOT / "tests") for p in home.iterdir() if p.is_dir()]
    own = [ROOT, PACKAGE, path.parent, *(ROOT / name for name in (".github", "examples", "tests"))]
    homes = [*own, *folders, *kinds]
    for name in re.findall(r"`([\w./-]+\.(?:py|md|yml))`", path.read_text(encoding="utf-8")):
        assert any((home / name).exists() for home in homes), name


def commands() -> dict[str, set[str]]:
    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in
               (*parameter.opts, *parameter.secondary_opts)}
        for name, command in group.commands.items()
    }  # fmt: skip


@each_document
def test_options_exist(path):
    known = commands()
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    spans = [line for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.M | re.S)
             for line in block.splitlines()]  # fmt: skip
    spans += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]
    for span in spans:
        for command, rest in re.findall(r"lipcert (\w+)((?:(?!\blipcert \w|#|&&).)*)", span):
            if command in known:
                for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
                    assert option in known[command] | {"--help"}, f"{command} {option}"
    everywhere = set().union(*known.values())
    for option in re.findall(r"`(--[a-z][a-z-]*)[ `]", prose(text)):
        assert option in everywhere | {"--help", "--only"}, option


def test_the_page_of_the_library_is_that_of_its_docstrings():
    assert write_api.PAGE.read_text(encoding="utf-8") == write_api.page(), write_api.__doc__


def imports(folder: Path) -> set[str]:
    """The parts of ``lipcert`` that a package imports beside itself."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
                if node.module == "lipcert":
                    names = [f"lipcert.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("lipcert.")}
    return found - {folder.name, "__version__"}


def test_imports_are_those_of_the_architecture():
    text = (PACKAGE / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| .* \| (.*?) \|$", text, re.M)
    table = {name: set(re.findall(r"`(\w+)`", allowed)) for name, allowed in rows}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(table) == packages
    shared = {path.stem for path in PACKAGE.glob("*.py")} & set(
        re.findall(r"`(\w+)\.py`", text.split("| package |")[0])
    )
    for name in packages - {"cli"}:
        assert imports(PACKAGE / name) <= table[name] | shared, name
    # One way: whoever a package imports does not lead back to it.
    for name in packages - {"cli"}:
        reached, left = set(), [*table[name]]
        while left:
            step = left.pop()
            if step not in reached:
                reached.add(step)
                left += table[step]
        assert name not in reached


def test_the_model_of_the_readme_is_trained_and_certified(tmp_path):
    (train,) = blocks(README, "python")
    (call,) = re.findall(r"`(lipcert\.certify\(.*\))`", README)
    certify = f"""
import lipcert

digits = load_dataset("digits")
images, labels = digits.images[:10], digits.labels[:10]
result = {call}
print(result.summary["certified_accuracy"], [sample.radius for sample in result.samples])
"""
    (tmp_path / "all.py").write_text(f"{train}\n{certify}", encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "all.py"], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    accuracy, radii = re.fullmatch(r"\{'0\.3': ([\d.]+)\} \[(.*)\]\n", ran.stdout).groups()
    assert float(accuracy) >= 0.5
    assert sum(float(radius) > 0 for radius in radii.split(", ")) >= 8


def test_every_module_of_the_mathematics_has_a_test_file():
    modules = {path.stem for path in (PACKAGE / "bounds").glob("*.py")} - {"__init__"}
    tests = {path.stem for path in (ROOT / "tests" / "bounds").glob("test_bounds_*.py")}
    assert {f"test_bounds_{module}" for module in modules} <= tests
