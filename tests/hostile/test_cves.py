"""Mistakes of other systems, by their CVE numbers, made again against this one. docs/concepts/security.md lists them all."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import stat
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.source_tree import REPOSITORY, imports, shown, source_files, tree_of
from tests.architecture.test_dangerous_calls import dangers
from tests.hostile.bounds import answer, refusal, within
from tests.hostile.conftest import call
from tests.hostile.evil_templates import REFUSED, STOPPED
from tests.hostile.folders import CONFIG, write_model
from tests.hostile.test_adapters import write_adapter
from tests.hostile.test_tokenizers import HANGING, SPEC, _split
from tunesmith.adapters.peft_files import read_adapter
from tunesmith.data.bad_row import BadRow
from tunesmith.data.chat_template import ChatTemplate, TemplateError
from tunesmith.data.formats import FORMATS
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.engine.checkpoint import CheckpointFolder
from tunesmith.errors import ModelError, RecipeError
from tunesmith.files import sha256_of
from tunesmith.models import loading
from tunesmith.models.loading import load_model
from tunesmith.models.locate import check_weights
from tunesmith.models.weights import read_header
from tunesmith.recipe.codec import load, parse
from tunesmith.recipe.data import SourceSection
from tunesmith.records import Message, Origin, RawRow
from tunesmith.types import Sampling

ASK = [Message("user", "When is high water?"), Message("assistant", "At noon.")]


class _Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def evil(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle, and the file that would appear if anybody loaded it. It does what it says."""
    owned = tmp_path / "owned"
    payload = pickle.dumps(_Touch(owned))
    pickle.loads(payload)
    assert owned.exists()
    owned.unlink()
    return payload, owned


def _zipped(path: Path, payload: bytes) -> None:
    """A pickle in a zip, as torch saves it since 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)


PICKLES = ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "extra_data.pickle", "rng_state.pth", "training_args.bin",
           "optimizer.pt", "scheduler.pt", "value_head.bin", "adapter_model.bin", "embeds.pt")  # fmt: skip


def test_cve_2025_32434_cve_2026_24747_cve_2024_3568_cve_2025_24357_weights_are_never_unpickled(
    tmp_path: Path, evil: tuple[bytes, Path]
) -> None:
    """torch.load with and without weights_only; transformers' and vLLM's loading of pickled checkpoints."""
    payload, owned = evil
    for packed in (False, True):
        folder = write_model(tmp_path / f"m{packed}")
        (folder / "model.safetensors").unlink()
        for name in PICKLES:
            _zipped(folder / name, payload) if packed else (folder / name).write_bytes(payload)
        for work in (lambda folder=folder: check_weights(folder), lambda folder=folder: load_model(folder)):
            assert isinstance(refusal(work), ModelError)
        assert not owned.exists()
    floor = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    least = next(re.search(r">=(\d+)\.(\d+)", item) for item in floor if item.startswith("torch>"))
    assert least is not None
    assert (int(least[1]), int(least[2])) >= (2, 10), "the torch that may be installed has neither flaw"


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_cve_2025_46567_cve_2025_53002_cve_2025_23298_cve_2026_31253_cve_2025_62164_no_torch_load(path: Path) -> None:
    """LLaMA-Factory's scripts and value heads, Transformers4Rec, flash-attention, vLLM's prompt embeddings."""
    assert [what for _, what in dangers(tree_of(path)) if "load" in what or "pickle" in what] == []


def test_cve_2026_1839_files_of_the_trainer_beside_a_checkpoint_are_not_read(
    desk: Path, evil: tuple[bytes, Path]
) -> None:
    """transformers' Trainer unpickled rng_state.pth of the folder it resumed from."""
    payload, owned = evil
    run = Path("runs/desk")
    values = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    steps = sorted(path for path in (run / "checkpoints").iterdir() if path.is_dir())
    assert steps
    for name in PICKLES:
        (steps[-1] / name).write_bytes(payload)
        (run / name).write_bytes(payload)
    assert CheckpointFolder(run / "checkpoints", values["run_identity"]).newest() is not None
    assert call("train", "recipe.yaml").code == 0
    assert call("export", run, "out").code == 0
    assert not owned.exists()


def test_cve_2025_53002_a_pickled_adapter_is_refused_and_a_value_head_ignored(
    tmp_path: Path, evil: tuple[bytes, Path]
) -> None:
    payload, owned = evil
    folder = write_adapter(tmp_path / "adapter")
    for name in ("value_head.bin", "vhead.bin", "adapter_model.bin"):
        (folder / name).write_bytes(payload)
    read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "pickled" in refusal(lambda: read_adapter(folder)).what
    assert not owned.exists()


@pytest.mark.parametrize("kind", ["pickle", "zip", "gguf", "tar", "text"])
def test_cve_2025_10155_cve_2025_10156_cve_2025_10157_cve_2026_22607_a_suffix_is_no_proof(
    tmp_path: Path, evil: tuple[bytes, Path], kind: str
) -> None:
    """Scanners of pickles were passed by other suffixes, broken archives and odd imports. Nothing is scanned: all is refused."""
    payload, owned = evil
    path = write_model(tmp_path / "m") / "model.safetensors"
    if kind == "zip":
        _zipped(path, payload)
    else:
        path.write_bytes(
            {"pickle": payload, "gguf": b"GGUF\x03\0\0\0" + b"\xff" * 64, "tar": b"x" * 600, "text": b"{}"}[kind]
        )
    for work in (lambda: read_header(path), lambda: load_model(path.parent)):
        assert isinstance(refusal(work), ModelError)
    assert not owned.exists()


def test_cve_2025_49847_cve_2025_52566_cve_2026_27940_cve_2026_33298_cve_2026_34159_gguf_is_not_parsed(
    tmp_path: Path,
) -> None:
    """llama.cpp's reader of GGUF: sizes that overflow, strings without end. The file is named, not opened."""
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.gguf")  # opening it would wait for ever
    assert "model.gguf" in refusal(lambda: check_weights(folder), 2).what


@pytest.mark.parametrize("key", ["_attn_implementation_internal", "attn_implementation", "_attn_implementation"])
def test_cve_2026_4372_a_config_chooses_no_kernel_of_a_hub(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers fetched and ran the kernel that the field named, whatever trust_remote_code said."""
    folder = write_model(tmp_path / "m", **{key: "evil/kernel", "inner": {key: "evil/kernel"}})
    for name in ("get_kernel", "load_and_register_attn_kernel", "lazy_load_kernel"):
        for module in [module for title, module in sys.modules.items() if title.startswith("transformers.")]:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a kernel was asked for"))
    assert "evil" not in json.dumps(load_model(folder).hf.config.to_dict(), default=str)


@pytest.mark.parametrize(
    "place", ["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"]
)
def test_cve_2025_66448_cve_2026_22807_cve_2026_27893_cve_2026_6859_code_of_a_folder_is_never_run(
    tmp_path: Path, place: str
) -> None:
    """vLLM's and InstructLab's ways around trust_remote_code: auto_map wherever a config is read."""
    owned = tmp_path / "owned"
    field = {
        "auto_map": {
            name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
        }
    }
    field |= {
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"},
        "custom_generate": "evil",
        "trust_remote_code": True,
    }
    folder = write_model(tmp_path / "m")
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(owned)!r}).touch()\n", encoding="utf-8")
    if place == "adapter_config.json":
        read_adapter(
            write_adapter(tmp_path / "adapter", auto_mapping=field["auto_mapping"], base_model_name_or_path=str(folder))
        )
    else:
        values = CONFIG if place == "config.json" else {}
        (folder / place).write_text(json.dumps(values | field), encoding="utf-8")
    load_model(folder)
    assert not owned.exists()
    assert "evil" not in sys.modules


_TEXTS = (ast.Constant, ast.JoinedStr, ast.BinOp)


def _starts_a_process(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and bool(node.args) and ast.unparse(node.func).startswith("subprocess.")


def test_cve_2024_52803_cve_2025_15379_cve_2026_0596_no_word_reaches_a_shell(desk: Path) -> None:
    """LLaMA-Factory and MLflow put names of models and files into a command line."""
    calls = [(path, node) for path in source_files() for node in ast.walk(tree_of(path)) if _starts_a_process(node)]
    words = [f"{shown(path)}:{node.lineno}" for path, node in calls if isinstance(node.args[0], _TEXTS)]
    assert words == []
    values = json.loads(Path("recipe.yaml").read_text(encoding="utf-8"))
    for name in ("$(touch owned)", "`touch owned`", "; touch owned", "| touch owned", "&& touch owned"):
        Path("evil.yaml").write_text(json.dumps(values | {"model": name}), encoding="utf-8")
        assert call("plan", "evil.yaml").code == 2
        assert call("generate", name, "--prompt", name).code == 2
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "video_url", "video_url": {"url": "http://localhost:1/"}},
        {"type": "file", "file": {"path": "/etc/passwd"}},
    ],
)
def test_cve_2025_61784_cve_2025_6242_cve_2026_24779_cve_2026_25960_cve_2026_34753_cve_2026_33626_nothing_is_fetched(
    part: dict[str, Any],
) -> None:
    """LLaMA-Factory, vLLM and LMDeploy opened the addresses and files that a message named."""
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "x"}]}
    with pytest.raises(BadRow):
        FORMATS["messages"](RawRow(Origin("r", 1), row), SourceSection(path="r"))


FETCHERS = {
    "urllib",
    "urllib3",
    "http",
    "requests",
    "httpx",
    "aiohttp",
    "ftplib",
    "smtplib",
    "telnetlib",
    "xmlrpc",
    "websockets",
    "huggingface_hub",
}
LISTENERS = {
    "socketserver",
    "http.server",
    "zmq",
    "multiprocessing",
    "asyncio",
    "flask",
    "fastapi",
    "uvicorn",
    "gradio",
    "grpc",
    "ray",
    "concurrent",
}


@pytest.mark.parametrize("path", source_files(), ids=shown)
def test_cve_2025_29783_cve_2025_32444_cve_2025_30165_cve_2025_47277_cve_2026_26220_nothing_listens_and_nothing_fetches(
    path: Path,
) -> None:
    """vLLM and LightLLM unpickled what came over a socket. Here none listens: the name of the host is all that is asked of one, and
    by the launcher of ranks a free port of the loopback address, which it closes before they start.
    """
    found = {item.module.split(".")[0] for item in imports(path)} | {item.module for item in imports(path)}
    assert found & (FETCHERS | LISTENERS) == set()
    asked = {
        node.attr
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "socket"
    }
    assert asked <= ({"socket"} if path.name == "launch.py" else {"gethostname"})
    assert not {"listen", "accept"} & {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(
    "name", [name for name in REFUSED if "class" in name or "globals" in name or "function" in name]
)
def test_cve_2026_5760_cve_2024_34359_a_template_does_not_reach_the_interpreter(name: str) -> None:
    """SGLang and llama-cpp-python rendered the template of a model file without a sandbox."""
    template = ChatTemplate(REFUSED[name], {})
    assert isinstance(refusal(lambda: template.render(ASK)), TemplateError)


def test_cve_2024_56326_cve_2025_27516_format_is_no_way_out_of_the_sandbox() -> None:
    """jinja2: str.format reached past the sandbox, by a stored reference or by the filter ``attr``."""
    for source in (
        "{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(cycler) }}",
        "{{ ('{0.__class__.__init__.__globals__}' | attr('format'))(cycler) }}",
        "{{ ['{0.__class__}'.format] | map('string') | first }}{{ ('{0.__class__.__mro__}' | attr('format_map'))({'0': 1}) }}",
    ):
        said = answer(lambda source=source: ChatTemplate(source, {}).render(ASK))
        assert isinstance(said, TemplateError) or "class" not in said


@pytest.mark.parametrize(
    "name", ["loop in a loop", "output without end", "comparison of trees", "static text in a block"]
)
def test_cve_2025_61620_cve_2025_62426_a_template_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM rendered the templates of requests without any limit; test_templates.py has sixty more."""
    monkeypatch.setattr("tunesmith.data.template_budget.MAX_WORK", 100_000)
    template = ChatTemplate(STOPPED[name], {})
    with within(20):
        assert "it was stopped" in refusal(lambda: template.render(ASK), 20).what


@pytest.mark.parametrize("expression", HANGING)
def test_cve_2025_48942_cve_2025_48943_cve_2025_48944_cve_2026_73556_expressions_of_strangers_end(
    tmp_path: Path, expression: str
) -> None:
    """vLLM compiled and ran whatever expression or schema a request held."""
    payload = json.dumps({**SPEC, "pre_tokenizer": _split(expression)})
    assert isinstance(refusal(lambda: Tokenizer(payload)), ModelError)
    folder = write_adapter(tmp_path / "adapter", alpha_pattern={expression: 1})
    assert isinstance(refusal(lambda: read_adapter(folder)), ModelError)


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-inf", "1e400", "1e-320"])
def test_cve_2026_54235_no_number_is_not_a_temperature(number: str) -> None:
    """vLLM took NaN as a temperature: every comparison lets it through, and it spoils all that is computed with it."""
    for option in ("--temperature", "--top-p"):
        if (option, number) != ("--top-p", "1e-320"):
            assert call("generate", "tunesmith-base-8m", "--prompt", "x", option, number).code == 2
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=float(number))
    if number != "1e-320":
        with pytest.raises(ValueError, match="top_p"):
            Sampling(top_p=float(number))


@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "epochs", "clip"])
def test_cve_2026_54235_nor_is_it_a_value_of_a_recipe(tmp_path: Path, key: str) -> None:
    for text in (".nan", ".inf", "-.inf", "1e999"):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"name: a\nmodel: m\ndata: {{train: r.jsonl}}\ntraining: {{{key}: {text}}}\n", encoding="utf-8")
        assert isinstance(refusal(lambda path=path: load(path)), RecipeError)


@pytest.mark.parametrize(
    "name", ["../../../etc/cron.d/x", "/etc/cron.d/x", "..", "a/../../b", "a\\..\\b", "a\0b", ".hidden/../.."]
)
def test_cve_2026_6855_cve_2023_1177_cve_2025_11201_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    """InstructLab's logs_dir and MLflow's artifacts and model versions: a name with dots wrote and read elsewhere."""
    with pytest.raises(RecipeError):
        parse({"name": name, "model": "m", "data": {"train": "r.jsonl"}})
    (tmp_path / "away").mkdir()
    for item in ("00000003", "00000004.bad-0", "0000005", "00000006\n", "٠٠٠٠٠٠٠٧"):
        (tmp_path / "checkpoints" / item).mkdir(parents=True)
    (tmp_path / "checkpoints" / "00000008").symlink_to(tmp_path / "away")
    assert CheckpointFolder(tmp_path / "checkpoints", "identity").steps() == [3]


def test_cve_2025_15031_cve_2025_15036_no_archive_is_unpacked() -> None:
    """MLflow unpacked tar files whose members led out of the folder. Here nothing is unpacked to files at all."""
    unpackers = {"tarfile", "zipfile", "shutil.unpack_archive", "py7zr", "rarfile"}
    assert [shown(path) for path in source_files() if {item.module for item in imports(path)} & unpackers] == []


def test_cve_2026_2651_results_are_not_written_over_what_others_own(desk: Path) -> None:
    """MLflow let one write over another's artifacts. A run and an export ask for a folder of their own."""
    Path("mine").mkdir()
    Path("mine/file").write_text("mine", encoding="utf-8")
    assert call("train", "recipe.yaml", "--run", "mine").code == 2
    assert call("export", "runs/desk", "mine").code == 2
    Path("link").symlink_to("mine")
    assert call("export", "runs/desk", "link").code == 2
    assert Path("mine/file").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in Path("mine").iterdir()] == ["file"]


def test_cve_2026_33865_a_recipe_in_the_page_is_text(desk: Path) -> None:
    """MLflow's page ran script from the YAML that it showed."""
    path = Path("runs/desk/recipe.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["data"]["train"][0]["path"] = "</pre><script>alert(1)</script>"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert call("report", "runs/desk").code == 0
    page = Path("runs/desk/report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;/pre&gt;&lt;script&gt;" in page


def test_cve_2026_4137_temporary_folders_are_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's were readable and writable by everybody on the machine."""
    modes: list[int] = []
    load_as_is = loading.AutoModelForCausalLM.from_pretrained

    def watched(folder: Path, **kwargs: Any) -> Any:
        modes.append(stat.S_IMODE(folder.stat().st_mode))
        return load_as_is(folder, **kwargs)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watched)
    before = os.umask(0)
    try:
        load_model(write_model(tmp_path / "m"))
    finally:
        os.umask(before)
    assert modes == [0o700]
    makers = [shown(path) for path in source_files() if any(item.module == "tempfile" for item in imports(path))]
    assert makers == ["src/tunesmith/models/loading.py"]


def test_cve_2026_10803_a_data_set_is_known_by_all_its_bytes(desk: Path) -> None:
    """MLflow's digest of a data set saw a sample of it."""
    path = Path("rows.jsonl")
    payload = path.read_bytes()
    known = sha256_of(path)
    for at in range(0, len(payload), 97):
        path.write_bytes(payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :])
        assert sha256_of(path) != known
    path.write_bytes(payload.replace(b"case number 3", b"case number 8"))
    times = path.stat()
    assert "changed" in call("train", "recipe.yaml").err
    path.write_bytes(payload)
    assert call("data", "check", "recipe.yaml", "--json").code == 0
    other = payload.replace(b"case number 5", b"case number 6")
    before = path.stat()
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time: a shortcut would be fooled
    checked = call("data", "check", "recipe.yaml", "--verify", "--json")
    assert checked.code == 0
    path.write_bytes(payload)
    assert checked.json["cache"] != call("data", "check", "recipe.yaml", "--verify", "--json").json["cache"]
    assert times.st_size == len(payload)


def test_the_number_of_each_test_is_in_the_table() -> None:
    """docs/concepts/security.md names every CVE that a test here names, and every test that it names is here."""
    text = (REPOSITORY / "docs" / "concepts" / "security.md").read_text(encoding="utf-8")
    mine = {f"CVE-{year}-{number}" for name in globals() for year, number in re.findall(r"cve_(\d{4})_(\d+)", name)}
    assert mine - set(re.findall(r"CVE-\d{4}-\d+", text)) == set()
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", text))
    written = {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert named - written == set()
