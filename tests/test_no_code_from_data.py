"""Data stays data: nothing that is read can run, and no name becomes a command."""

import ast
from pathlib import Path

import pytest

from lab import files

SOURCES = sorted(
    path
    for folder in (files.ROOT / "sare_min", files.LAB, files.CHAPTERS)
    for path in (folder.glob("*.py") if folder == files.CHAPTERS else folder.rglob("*.py"))
)
RUNS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNPACKS = ("extractall", "extract", "unpack_archive")  # of whatever object
CALLS = {  # what runs what it reads
    **dict.fromkeys(("eval", "exec", "__import__"), "runs a text"),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput"), "starts a shell"),
    **dict.fromkeys(("np.load", "numpy.load", "pd.read_pickle", "yaml.load"), "may hold pickles"),
    **dict.fromkeys(UNPACKS, "may write outside its folder"),
}
PROCESSES = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output")
TENSORS = ("torch.load", "torch.save")


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def modules(node: ast.AST) -> set[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return {name.split(".")[0] for name in names}


def offences(text: str, forbids: tuple[str, ...] = ()) -> list[str]:
    """What a source does that could run what it reads, "line: what" each; forbids: more calls."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if bad := modules(node) & RUNS:
            found.append(f"{node.lineno}: imports {bad.pop()}")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        method = name.rpartition(".")[2]
        what = method if method in UNPACKS else name  # model.eval() is another thing than eval()
        if what in CALLS:
            found.append(f"{node.lineno}: {name} {CALLS[what]}")
        if name in forbids:
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and not keyword(node, "weights_only", True):
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if any(
            k.arg == "trust_remote_code" and not keyword(node, k.arg, False) for k in node.keywords
        ):
            found.append(f"{node.lineno}: trust_remote_code")
        is_text = node.args and isinstance(node.args[0], (ast.JoinedStr, ast.BinOp, ast.Constant))
        if name in PROCESSES and (is_text or any(k.arg == "shell" for k in node.keywords)):
            found.append(f"{node.lineno}: {name} of one text, or by a shell")
        if method in ("execute", "executemany") and isinstance(
            node.args[:1] and node.args[0], ast.JoinedStr
        ):
            found.append(f"{node.lineno}: {name} of a text with names in it")
    return found


def keyword(call: ast.Call, name: str, value: bool) -> bool:
    """Is the keyword given as that literal?"""
    given = [k.value for k in call.keywords if k.arg == name]
    return bool(given) and isinstance(given[0], ast.Constant) and given[0].value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(files.ROOT)))
def test_nothing_that_is_read_can_run(path):
    """Fails if a source unpickles, evaluates a text, trusts a hub's code, or builds a command."""
    assert not offences(path.read_text(encoding="utf-8"))


def test_tensors_are_kept_as_safetensors():
    """Fails if a tensor is kept in torch's own format, a zip of pickles."""
    found = {
        str(path.relative_to(files.ROOT)): bad
        for path in SOURCES
        if (bad := offences(path.read_text(encoding="utf-8"), TENSORS))
    }
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "eval(name)",
        "exec(cell)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "model.from_pretrained(path, trust_remote_code=True)",
        "model.from_pretrained(path, trust_remote_code=trust)",
        "os.system('rm ' + name)",
        "subprocess.run(f'unzip {name}')",
        "subprocess.run([name], shell=True)",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
        "np.load(path, allow_pickle=True)",
        "cache.execute(f'SELECT * FROM {name}')",
    ],
)
def test_each_of_these_would_be_seen(text):
    """Fails if the search above misses what it is for."""
    assert len(offences(text)) == 1


def test_what_is_safe_is_left_alone():
    """Fails if the search cries at what runs nothing."""
    safe = (
        "model.eval()\nsubprocess.run([sys.executable, name])\ntorch.load(p, weights_only=True)\n"
    )
    safe += "from_pretrained(p, trust_remote_code=False)\ncache.execute('SELECT ?', (name,))\n"
    assert not offences(safe) and len(offences(safe, TENSORS)) == 1


def test_a_plans_sentence_cannot_look_into_the_program(tmp_path):
    """Fails if the README's words in a plan may reach more than their numbers."""
    from lab.evidence import plan

    text = Path(plan.PATH).read_text(encoding="utf-8")
    assert "{sare" in text
    (tmp_path / "claims.toml").write_text(text.replace("{sare", "{sare.__class__", 1))
    with pytest.raises(ValueError, match=r"claims.toml: row.*sentence.*'sare.__class__'"):
        plan.load(tmp_path / "claims.toml")
