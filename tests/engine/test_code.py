"""What counts as another code or other data: laws on the package's own modules, and sources that come and go."""

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcorr import params
from semcorr.datasets import toy
from semcorr.engine import basis, code, graph
from semcorr.engine.memory import Memory
from semcorr.errors import UserError

PACKAGE = Path(__file__).parents[2] / "semcorr"
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture
def hashed(tmp_path):
    """A function that hashes a source."""

    def digest(source: str) -> str:
        path = tmp_path / "module.py"
        path.write_text(source)
        return code._read(path)[0]

    return digest


def test_layout_comments_and_docstrings_change_nothing(hashed):
    """Every module, as Python itself would write it: no comments, other lines, other quotes; and with other texts."""
    for path in SOURCES:
        source = path.read_text()
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body[0].value.value = "Other words."
        assert hashed(ast.unparse(tree)) == hashed(source), path


@settings(max_examples=12)
@given(data=st.data())
def test_anything_else_changes_it(data, tmp_path_factory):
    """A number, a text, a name or an operator of any module."""
    path = data.draw(st.sampled_from([path for path in SOURCES if len(path.read_text()) > 1000]))
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # texts that stand for themselves
    kinds = (ast.Constant, ast.Name, ast.BinOp, ast.Attribute)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds) and id(node) not in said]
    node = data.draw(st.sampled_from(nodes))
    file = tmp_path_factory.mktemp("code") / "module.py"

    def digest() -> str:
        file.write_text(ast.unparse(tree))
        return code._read(file)[0]

    before = digest()
    match node:
        case ast.Constant(value=str()):
            node.value += "x"
        case ast.Constant():
            node.value = 12345 if node.value != 12345 else 1
        case ast.Name():
            node.id += "x"
        case ast.Attribute():
            node.attr += "x"
        case ast.BinOp():
            node.op = ast.Sub() if not isinstance(node.op, ast.Sub) else ast.Add()
    assert digest() != before


def test_f_strings_are_one_text_however_they_are_cut(hashed):
    assert hashed("f'a{b}' 'c' f'd'") == hashed("f'a{b}cd'") == hashed("f'a{b}' f'cd'")
    assert hashed("f'a{b}c'") != hashed("f'a{b!r}c'") != hashed("f'ab{b!r}c'")


@pytest.mark.parametrize("stage", ["fetch", "finetune"])
def test_all_that_a_stage_loads_counts(stage):
    """The modules of semcorr that Python has loaded are those that are followed, and those that compute nothing."""
    found = f"import sys, semcorr.stages.{stage}\nprint(*[name for name in sys.modules if name.startswith('semcorr')])"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    followed = code.modules(Memory(Path("nowhere")), f"semcorr.stages.{stage}").keys()
    assert {name for name in loaded if not code.UNCOUNTED.fullmatch(name)} <= followed


def test_one_memory_for_many_answers(tmp_path):
    """An answer is remembered for as long as the file looks as it did, in the next process too; damage is forgotten."""
    path, asked = tmp_path / "a", []

    def answer(file: Path) -> str:
        asked.append(file)
        return file.read_text()

    path.write_text("one")
    for _ in range(2):
        memory = Memory(tmp_path / "memory.json")
        assert memory.ask("text", path, answer) == "one"
        memory.save()
    assert len(asked) == 1
    path.write_text("three")
    assert memory.ask("text", path, answer) == "three"
    for damage in ("", "[1]", '{"text": 3}'):
        (tmp_path / "memory.json").write_text(damage)
        assert Memory(tmp_path / "memory.json").ask("text", path, answer) == "three"


def test_sources_that_come_and_go(smoke, tmp_path, monkeypatch):
    """What was read of a folder is said of it when it is gone, until params.yaml names others; then nothing is."""
    monkeypatch.chdir(tmp_path)
    toy.write_pfwillow(Path("mine/willow"), 3, {"all": 2})
    values = copy.deepcopy(smoke)
    place = graph.BASIS / "datasets/toy_willow"

    def said(*sources: dict) -> str:
        values["datasets"]["toy_willow"]["sources"] = list(sources)
        experiment = graph.Graph(params.validate(values, "x"))
        found = basis.texts(experiment, Memory())
        basis.write(found)
        basis.require_sources(place, experiment.params)
        return found[place]

    folder, drawn = {"kind": "path", "path": "mine"}, smoke["datasets"]["toy_willow"]["sources"][0]
    whole = said(folder, drawn)
    assert "  car(T)/" in whole  # a line for each folder
    image = next(Path("mine").rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(content + b" ")
    assert said(folder, drawn) != whole
    image.write_bytes(content)
    assert said(folder, drawn) == whole
    Path("mine").rename("elsewhere")
    experiment = graph.Graph(params.validate(values, "x"))
    assert basis.texts(experiment, Memory())[place] == whole
    with pytest.raises(UserError, match="mine: gone since this was made"):
        basis.require_sources(place, experiment.params)
    assert "read of this machine" not in said(drawn)
    assert "read of this machine" not in said(folder, drawn)
