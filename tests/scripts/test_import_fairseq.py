"""The import as a command: what it refuses leaves no file and runs no code."""

import builtins
import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from import_fairseq import ImportConfig, main
from tests.interop.conftest import KINDS, model_of, tensors_of_2019, todays_tensors

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_fairseq.py"
DICTIONARY = "ba 9\nde@@ 5\nfi 3\n. 1\n"
CODES = "#version: 0.2\nb a</w>\nd e\nf i</w>\n"

State = dict[str, Any]


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a good checkpoint, dictionary and codes; code would write `touched` there."""
    fields = dict(KINDS["lightconv"])
    tensors = tensors_of_2019(todays_tensors(model_of(fields), fields), fields)
    write(tmp_path, {"args": Namespace(**fields), "model": tensors, "extra_state": {}})
    (tmp_path / "dict.txt").write_text(DICTIONARY)
    (tmp_path / "codes").write_text(CODES)
    return tmp_path


def write(place: Path, state: Any, *, zipped: bool = True) -> None:
    torch.save(state, place / "model.pt", _use_new_zipfile_serialization=zipped)


def read(place: Path) -> State:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(place / "model.pt", weights_only=True)


def run(place: Path, *words: str) -> int:
    """Import what lies there; words win over the usual ones."""
    usual = {
        "checkpoint": str(place / "model.pt"),
        "dict_src": str(place / "dict.txt"),
        "dict_tgt": str(place / "dict.txt"),
        "out": str(place / "run"),
    }
    given = {word.partition("=")[0] for word in words}
    return main([*(f"{key}={path}" for key, path in usual.items() if key not in given), *words])


def files(place: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


def refused(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and line of an import that must fail without a trace."""
    before = files(place)
    capsys.readouterr()
    code = run(place, *words)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    assert files(place) == before
    return code, output.err


EVIL: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda place: Call(os.system, f"touch {place / 'touched'}"),
    "eval": lambda place: Call(eval, f"open({str(place / 'touched')!r}, 'w')"),
    "exec": lambda place: Call(exec, f"open({str(place / 'touched')!r}, 'w')"),
    "open": lambda place: Call(builtins.open, str(place / "touched"), "w"),
    "import": lambda place: Call(importlib.import_module, "antigravity"),
    "subprocess": lambda place: Call(subprocess.Popen, ["touch", str(place / "touched")]),
    "pickle": lambda place: Call(pickle.loads, b"cos\nsystem\n(S'true'\ntR."),
    "getattr": lambda place: Call(getattr, "", "join"),
    "torch.load": lambda place: Call(torch.load, str(place / "model.pt")),
    "torch.hub": lambda place: Call(torch.hub.load, str(place), "x"),
    "path": lambda place: place,
    "a class": lambda place: Call,
    "a function": lambda place: files,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("evil", EVIL)
def test_code_in_a_checkpoint_is_refused_and_never_run(
    evil: str, zipped: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place, {**read(place), "extra_state": EVIL[evil](place)}, zipped=zipped)
    code, line = refused(place, capsys)
    assert code == 4
    assert "which is no data of a fairseq checkpoint; it is refused, nothing of it was" in line
    assert not (place / "touched").exists()


HIDING: dict[str, Callable[[State, Call], State]] = {
    "args": lambda state, call: {**state, "args": call},
    "model": lambda state, call: {**state, "model": call},
    "cfg": lambda state, call: {**state, "args": None, "cfg": {"model": call}},
    "nested": lambda state, call: {
        **state,
        "args": Namespace(**vars(state["args"]), inner=Namespace(inner=[call])),
    },
    "an option": lambda state, call: {
        **state,
        "args": Namespace(**{**vars(state["args"]), "encoder_layers": call}),
    },
    "a tensor's name": lambda state, call: {**state, "model": {**state["model"], "x": call}},
    "a key": lambda state, call: {**state, "extra_state": {(1, call): 2}},
}


@pytest.mark.parametrize("where", HIDING)
def test_code_is_found_wherever_it_hides(
    where: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = Call(os.system, f"touch {place / 'touched'}")
    write(place, HIDING[where](read(place), call))
    code, line = refused(place, capsys)
    assert (code, "holds posix.system, which is no data" in line) == (4, True)
    assert not (place / "touched").exists()


def test_no_module_is_imported_for_what_a_checkpoint_names(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"open({str(place / 'touched')!r}, 'w')\nclass Meter: pass\n"
    (place / "evil_meters.py").write_text(source)
    monkeypatch.syspath_prepend(str(place))
    evil = importlib.import_module("evil_meters")
    write(place, {**read(place), "extra_state": evil.Meter()})
    del sys.modules["evil_meters"]
    (place / "touched").unlink()
    code, line = refused(place, capsys)
    assert (code, "holds evil_meters.Meter, which is" in line) == (4, True)
    assert "evil_meters" not in sys.modules


def with_model(**changes: Any) -> Callable[[State], State]:
    """Changes parameters; None removes one."""

    def change(state: State) -> State:
        model = {**state["model"], **changes}
        return {**state, "model": {key: value for key, value in model.items() if value is not None}}

    return change


def with_options(**changes: Any) -> Callable[[State], State]:
    """Changes options; ... removes one."""

    def change(state: State) -> State:
        options = {**vars(state["args"]), **changes}
        kept = {key: value for key, value in options.items() if value is not ...}
        return {**state, "args": Namespace(**kept)}

    return change


FC1 = "encoder.layers.0.fc1.weight"
EMBED = "encoder.embed_tokens.weight"
BROKEN: dict[str, tuple[Callable[[State], Any], str]] = {
    "a list": (lambda state: [state], "it holds no dictionary"),
    "a tensor": (lambda state: state["model"][FC1], "it holds no dictionary"),
    "nothing": (lambda state: {}, "it has no parameters"),
    "no model": (lambda state: {"args": state["args"]}, "it has no parameters"),
    "empty model": (lambda state: {**state, "model": {}}, "it has no parameters"),
    "model is a list": (lambda s: {**s, "model": list(s["model"].values())}, "no parameters"),
    "text in model": (with_model(**{FC1: "weights"}), "in 'model' is str, no tensor"),
    "list in model": (with_model(**{FC1: [1.0, 2.0]}), "in 'model' is list, no tensor"),
    "model in model": (with_model(**{FC1: {"a": torch.ones(1)}}), "in 'model' is dict"),
    "number as key": (lambda s: {**s, "model": {**s["model"], 3: torch.ones(1)}}, "3 in 'model'"),
    "no args": (lambda state: {"model": state["model"]}, "does not say how its model is built"),
    "args is text": (lambda state: {**state, "args": "x"}, "does not say how its model is"),
    "args is empty": (lambda state: {**state, "args": Namespace()}, "is of arch None"),
    "a tensor among args": (
        with_options(encoder_layers=torch.ones(2)),
        "encoder_layers='a Tensor', which is no size",
    ),
    "unknown arch": (with_options(arch="fconv"), "is of arch 'fconv'"),
    "language model": (with_options(arch="lightconv_lm"), "is of arch 'lightconv_lm'"),
    "other task": (with_options(task="denoising"), "for the task 'denoising'"),
    "learned positions": (with_options(encoder_learned_pos=True), "encoder_learned_pos, which"),
    "learned positions in model": (
        with_model(**{"encoder.embed_positions.weight": torch.ones(9, 12)}),
        "are learned positional embeddings",
    ),
    "adaptive softmax": (with_options(adaptive_softmax_cutoff="4,6"), "adaptive_softmax_cutoff"),
    "kernels and layers": (with_options(encoder_kernel_size_list=[3, 5, 7]), "has 3 widths in"),
    "kernels and weights": (
        with_options(encoder_kernel_size_list=[3, 7]),
        "encoder.layers.1.conv.weight is (3, 5), but the options of the model make it (3, 7)",
    ),
    "heads": (
        with_options(encoder_attention_heads=4),
        "encoder.layers.0.conv.weight is (3, 3), but the options of the model make it (4, 3)",
    ),
    "gate": (
        with_options(encoder_glu=False),
        "linear1.weight is (24, 12), but the options of the model make it (12, 12)",
    ),
    "number of layers": (
        with_options(encoder_layers=3, encoder_kernel_size_list=[3]),
        "encoder_layers is 3, but there are parameters of 2 layers",
    ),
    "absurd layers": (
        with_options(encoder_layers=9_999_999, encoder_kernel_size_list=[3]),
        "encoder_layers is 9999999, but there are parameters of 2 layers",
    ),
    "absurd size": (
        with_options(encoder_ffn_embed_dim=1 << 24),
        f"{FC1} is (20, 12), but the options of the model make it (16777216, 12)",
    ),
    "impossible size": (with_options(encoder_ffn_embed_dim=1 << 62), "which is no size"),
    "missing option": (with_options(encoder_glu=...), "encoder_glu=None, neither true nor false"),
    "missing parameter": (with_model(**{FC1: None}), "1 parameters are missing"),
    "missing layer norm": (
        with_model(**{"decoder.layers.1.conv_layer_norm.bias": None}),
        "1 parameters are missing",
    ),
    "unknown parameter": (
        with_model(**{"encoder.layers.0.gate.weight": torch.ones(3)}),
        "encoder.layers.0.gate.weight is no parameter of a LightConv",
    ),
    "last norm of another form": (
        with_model(**{"encoder.layer_norm.weight": torch.ones(12)}),
        "1 do not belong to such a model (encoder.layer_norm.weight)",
    ),
    "attention in a convolution": (
        with_model(**{"encoder.layers.0.self_attn.q_proj.weight": torch.ones(12, 12)}),
        "1 do not belong to such a model",
    ),
    "two norms": (
        with_model(**{"encoder.layers.0.layer_norm1.weight": torch.ones(12)}),
        "are two tensors of one parameter",
    ),
    "wrong shape": (with_model(**{FC1: torch.ones(12, 20)}), f"{FC1} is (12, 20), but the"),
    "a number for a table": (with_model(**{FC1: torch.tensor(1.0)}), f"{FC1} is (), but the"),
    "NaN": (with_model(**{FC1: torch.full((20, 12), float("nan"))}), f"{FC1} holds numbers that"),
    "infinity": (
        with_model(**{FC1: torch.full((20, 12), float("inf"))}),
        f"{FC1} holds numbers that are not finite",
    ),
    "infinite as float32": (
        with_model(**{FC1: torch.full((20, 12), 1e300, dtype=torch.float64)}),
        f"{FC1} holds numbers that are not finite",
    ),
    "whole numbers": (
        with_model(**{FC1: torch.ones(20, 12, dtype=torch.int64)}),
        f"{FC1} is of torch.int64, no real numbers",
    ),
    "booleans": (with_model(**{FC1: torch.ones(20, 12) > 0}), f"{FC1} is of torch.bool, no real"),
    "complex numbers": (
        with_model(**{FC1: torch.ones(20, 12, dtype=torch.complex64)}),
        f"{FC1} is no plain table of numbers",
    ),
    "sparse": (with_model(**{FC1: torch.eye(12).to_sparse()}), f"{FC1} is no plain table"),
    "no numbers at all": (
        with_model(**{FC1: torch.ones(20, 12, device="meta")}),
        f"{FC1} is no plain table",
    ),
    "tied tensors that differ": (
        with_model(**{"decoder.embed_tokens.weight": torch.ones(8, 12)}),
        f"decoder.embed_tokens.weight and {EMBED} differ, though",
    ),
    "tied output that differs": (
        with_model(**{"decoder.output_projection.weight": torch.ones(8, 12)}),
        f"decoder.output_projection.weight and {EMBED} differ, though",
    ),
    "larger than its file": (
        lambda state: with_options(encoder_ffn_embed_dim=1 << 20)(
            with_model(
                **{
                    f"encoder.layers.{layer}.{name}": torch.ones(1).expand(shape)
                    for layer in range(2)
                    for name, shape in (
                        ("fc1.weight", (1 << 20, 12)),
                        ("fc1.bias", (1 << 20,)),
                        ("fc2.weight", (12, 1 << 20)),
                    )
                }
            )(state)
        ),
        "the parameters claim to be larger than the file",
    ),
    "more tokens than the dictionary": (
        with_model(**{EMBED: torch.ones(9, 12), "decoder.embed_tokens.weight": torch.ones(9, 12)}),
        "dict_src has 8 tokens, the 4 special ones included, but the model 9",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_checkpoints_that_do_not_fit_are_refused(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, complaint = BROKEN[kind]
    write(place, change(read(place)))
    code, line = refused(place, capsys)
    assert code == 4
    assert complaint in line


def rezipped(place: Path) -> None:
    with zipfile.ZipFile(place / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), "does not exist; give a checkpoint file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; give a checkpoint file"),
    "empty": (lambda path: path.write_bytes(b""), "is no file of torch.save"),
    "text": (lambda path: path.write_text("weights" * 99), "is no file of torch.save"),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no file of"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is damaged"),
    "without its end": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is damaged"),
    "another archive": (lambda path: rezipped(path.parent), "cannot be read as a checkpoint"),
    "only its first bytes": (lambda path: path.write_bytes(b"PK\x03\x04"), "is damaged"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_checkpoints_are_refused(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, complaint = FILES[kind]
    change(place / "model.pt")
    code, line = refused(place, capsys)
    assert (code, complaint in line) == (4, True), line


@pytest.mark.parametrize(
    ("words", "contents", "code", "complaint"),
    [
        ((), {"dict.txt": "ba 9\n"}, 4, "dict_src has 5 tokens"),
        ((), {"dict.txt": "ba 9\nde\n"}, 3, "line 2: 'de' is not 'token count'"),
        ((), {"dict.txt": "ba 9\nba 5\nfi 3\n. 1\n"}, 3, "line 2: 'ba' is there already"),
        ((), {"dict.txt": "ba 9\nde -5\nfi 3\n. 1\n"}, 3, "line 2: 'de -5' is not"),
        ((), {"dict.txt": ""}, 3, "has no tokens"),
        (("dict_src=/nowhere",), {}, 3, "cannot read the dictionary /nowhere"),
        (("dict_tgt={}/other",), {"other": "ba 9\n"}, 4, "shares all embeddings, but dict_src has"),
        (
            ("dict_tgt={}/other",),
            {"other": DICTIONARY.replace("fi", "fo")},
            2,
            "model.tying=all needs one vocabulary",
        ),
        (("bpe_codes={}/codes",), {"codes": "x\n"}, 3, "line 1: 'x' is no merge"),
        (("bpe_codes={}/codes",), {"codes": "a b 12\n"}, 3, "are fastBPE's codes"),
        (("bpe_codes={}/codes",), {"codes": ""}, 3, "has no BPE codes"),
        (("bpe_codes=/nowhere",), {}, 3, "cannot read the file of BPE codes /nowhere"),
        (
            ("bpe_codes={}/codes",),
            {"dict.txt": DICTIONARY.replace("@@", "")},
            2,
            "dict_src has no piece that ends in @@",
        ),
        (("escape=true",), {}, 2, "escape belongs to Moses' words"),
        (("bpe_codes_tgt=x",), {}, 2, "bpe_codes_tgt is given without bpe_codes"),
        (
            ("dict_tgt={}/other", "bpe_codes={}/codes"),
            {"other": DICTIONARY.upper()},
            2,
            "say lowercase=true if all text was lower-cased",
        ),
        (("out={}/dict.txt",), {}, 4, "dict.txt is there already"),
        (("out={}",), {}, 4, "is there already; choose another folder"),
        (("out=.",), {}, 2, "out=. has no name of its own"),
        (("out=",), {}, 2, "out is empty"),
        (("out={}/dict.txt/run",), {}, 4, "cannot write out="),
        (("dict_sr=x",), {}, 2, "there is no key dict_sr; did you mean dict_src?"),
        (("lowercase=maybe",), {}, 2, "lowercase is 'maybe'; give true or false"),
        (("moses",), {}, 2, "'moses' is not key=value"),
        (("out=a", "out=b"), {}, 2, "out has several values"),
    ],
)
def test_so_is_everything_else_that_does_not_fit(
    words: tuple[str, ...],
    contents: dict[str, str],
    code: int,
    complaint: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in contents.items():
        (place / name).write_text(text)
    found, line = refused(place, capsys, *(word.format(place) for word in words))
    assert (found, complaint in line) == (code, True), line


def test_a_missing_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out=x"]) == 2
    assert "no value for checkpoint, dict_src, dict_tgt" in capsys.readouterr().err


def test_a_missing_package_is_one_line_that_names_the_extra(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = f"bpe_codes={place / 'codes'}"
    for module, name in (("subword_nmt.apply_bpe", "subword-nmt"), ("sacremoses", "sacremoses")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            code, line = refused(place, capsys, codes)
        assert line == f"error: {name} is not installed; pip install 'lightconv_mt[fairseq]'\n"
        assert code == 2


def test_help_is_quick_and_names_every_key() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); from import_fairseq import main;"
        f"code = main(['--help']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    keys = {line.split()[0] for line in found.stdout.splitlines() if line.startswith("  ")}
    assert set(ImportConfig.__dataclass_fields__) <= keys


def test_the_script_imports_and_says_what_it_took_the_text_for(place: Path) -> None:
    words = [f"checkpoint={place / 'model.pt'}", f"out={place / 'made' / 'run'}"]
    words += [f"{key}={place / 'dict.txt'}" for key in ("dict_src", "dict_tgt")]
    words.append(f"bpe_codes={place / 'codes'}")
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")
    assert found.stderr.splitlines() == [
        f"{place}/made/run: lightconv, 2 + 2 layers of 12 channels, 5,234 parameters, "
        f"8 and 8 tokens",
        "source text: punctuation normalised, Moses' words (de), dashes not split, lower-cased, "
        "cut by BPE",
        "target text: punctuation normalised, Moses' words (en), dashes not split, lower-cased, "
        "cut by BPE",
    ]
