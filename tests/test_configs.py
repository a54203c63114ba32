"""Every config composes, builds and survives its YAML; every typo gives one line that helps."""

import shlex
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from lightconv_mt import config as real
from lightconv_mt.cli import ROOTS
from lightconv_mt.compose import compose
from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.overview import option_names
from lightconv_mt.schemas import read_root
from lightconv_mt.typed import build_typed, read_yaml, to_plain, to_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = option_names([CONFIGS], "experiment")
OPTIONS = [
    f"{path.parent.relative_to(CONFIGS)}={path.stem}"
    for path in sorted(CONFIGS.rglob("*/*.yaml"))
    if not {"experiment", "recipe"} & {*path.relative_to(CONFIGS).parts}
]
# What the options leave to the user.
TEXT = (
    "data.src_lang=en data.tgt_lang=de data.train.main.src=a data.train.main.tgt=b "
    "data.valid.src=c data.valid.tgt=d"
)
PATHS = "data.src_lang=en data.tgt_lang=de data.train.main.path=a data.valid.path=b"
NEEDED = {
    "data=text": TEXT,
    "data=tsv": PATHS,
    "data=json": PATHS,
    "data=parquet": PATHS,
    "tokenizer=fairseq": "tokenizer.src_model=dict.txt",
    "data=hub": TEXT + " data.train.main.path=a data.valid.path=b",
    "experiment=multi30k_tuned": "start_from=null",  # there is no such run here
}


def composed(command: str, line: str) -> Any:
    """The typed configuration of a command line."""
    root, registers = read_root(ROOTS[command])
    (plain,) = compose(command, shlex.split(line), root=root, registers=registers)
    build_typed(root, plain, registers=registers)
    return real.to_typed(getattr(real, ROOTS[command]), plain)


def complaint(command: str, line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        composed(command, line)
    assert caught.value.exit_code == 2
    return str(caught.value)


def build(config: real.TrainRunConfig) -> Seq2SeqTransformer:
    size = config.tokenizer.vocab_size
    with torch.device("meta"):
        return Seq2SeqTransformer(
            config.model, src_vocab_size=size, tgt_vocab_size=size, src_pad_id=0, tgt_pad_id=0
        )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_and_survives_its_yaml(experiment: str, tmp_path: Path) -> None:
    option = f"experiment={experiment}"
    config = composed("train", f"{option} {NEEDED.get(option, '')}")
    model = build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert real.load_run_config(tmp_path) == config
    assert real.to_typed(real.TrainRunConfig, to_plain(config)) == config


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    group = option.partition("=")[0]
    command = "translate" if group in ("decode", "runtime") else "train"
    config = composed(command, f"run_dir=x {option} {NEEDED.get(option, '')}")
    if group == "model/mixer":
        assert type(config.model.mixer) is MIXERS[option.partition("=")[2]]


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_every_mixer_trains_the_demo_and_each_side_may_have_its_own(mixer: str) -> None:
    config = composed("train", f"experiment=demo model/mixer={mixer}")
    assert config.model.mixer.name == mixer
    build(config)
    config = composed("train", f"experiment=demo model/mixer@model.decoder_mixer={mixer}")
    assert (config.model.mixer.name, config.model.decoder_mixer.name) == ("dynamicconv", mixer)
    build(config)


def test_mixed_stacks_take_values_of_their_own_and_survive_their_yaml(tmp_path: Path) -> None:
    line = (
        "experiment=demo model.encoder_mixers=[dynamicconv,attention,near] "
        "+model/mixer@model.mixers.near=attention model.mixers.near.encoder_windows=3 "
        "model.mixers.attention.encoder_windows=3,7,15 model.attention_dropout=0.25 "
        "model.decoder_mixers=conv"
    )
    config = composed("train", line)
    assert list(config.model.mixers) == ["attention", "conv", "near"]  # those named, no others
    encoder = [config.model.layer_mixer("encoder", layer) for layer in range(3)]
    assert encoder[0] is config.model.mixer
    assert [mixer.encoder_windows for mixer in encoder[1:]] == [[3, 7, 15], [3]]
    assert [mixer.attention_dropout for mixer in encoder[1:]] == [0.25, 0.25]
    assert config.model.layer_mixer("decoder", 2).name == "conv"
    assert build(config).encoder.layers[1].mixer.window == 7
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert real.load_run_config(tmp_path) == config
    assert composed("train", "experiment=demo").model.mixers == {}


def test_an_experiment_may_set_windows_and_mix_mixers(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [demo, override /model/mixer: attention, _self_]\n"
        "model:\n"
        "  mixer:\n"
        "    decoder_windows: ${per_layer:[3,7],${model.decoder_layers}}\n"
        "  encoder_mixers: [conv, lightconv, attention]\n"
        "  mixers:\n"
        "    lightconv:\n"
        "      encoder_kernel_sizes: [9]\n"
    )
    line = f"--config-dir {tmp_path} experiment=mine"
    model = composed("train", line).model
    assert (model.mixer.encoder_windows, model.mixer.decoder_windows) == (None, [3, 7, 7])
    names = [model.layer_mixer("encoder", layer).name for layer in range(3)]
    assert names == ["conv", "lightconv", "attention"]
    assert model.layer_mixer("encoder", 1).encoder_kernel_sizes == [9]
    again = composed("train", f"{line} model.mixer.decoder_windows=null model.encoder_mixers=null")
    assert (again.model.mixer.decoder_windows, again.model.mixers) == (None, {})


@pytest.mark.parametrize("command", ROOTS)
def test_the_torch_free_twins_are_the_real_classes(command: str) -> None:
    root, registers = read_root(ROOTS[command])
    pairs = [(root, getattr(real, ROOTS[command]))]
    for group, (_, register) in registers.items():
        theirs = real.REGISTERS[group][1]
        assert register.keys() == theirs.keys()
        pairs += [(register[name], theirs[name]) for name in register]
    seen = 0
    while pairs:
        ours, theirs = pairs.pop()
        assert ours.__name__ == theirs.__name__
        if not is_dataclass(ours):
            continue
        seen += 1
        for mine, yours in zip(fields(ours), fields(theirs), strict=True):
            assert mine.name == yours.name
            if mine.default is not MISSING:
                assert str(mine.default) == str(yours.default)
            hints = get_type_hints(ours)[mine.name], get_type_hints(theirs)[yours.name]
            assert str(hints[0]).split(".")[-1] == str(hints[1]).split(".")[-1]
            if isinstance(hints[0], type):
                pairs.append(hints)
    assert seen >= 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optim.lrr=1", "there is no key optim.lrr; did you mean optim.lr?"),
        ("lr=1", "there is no key lr; did you mean optim.lr?"),
        ("modle.dim=8", "there is no key modle.dim; did you mean model.dim?"),
        ("+optim.foo=1", "there is no key optim.foo; optim has beta1, beta2,"),
        ("optim.lr=abc", "optim.lr is 'abc'; give a number"),
        ("train.max_steps=1.5", "train.max_steps is '1.5'; give a whole number"),
        ("model.pre_norm=7up", "model.pre_norm is '7up'; give true or false"),
        ("model.tying=some", "model.tying is 'some'; give one of"),
        ("runtime.kernels=cuda", "runtime.kernels is 'cuda'; give one of auto, reference"),
        ("model=tinny", "there is no model=tinny; did you mean tiny?"),
        ("model/mixer=lightcnov", "there is no model/mixer=lightcnov; did you mean lightconv?"),
        ("modell=tiny", "there is no key modell; did you mean model?"),
        ("experiment=nope", "there is no experiment=nope; choose one of ablation/attention, "),
        ("experiment=ablation/ligthconv", "did you mean ablation/lightconv?"),
        ("~optim.lr", "optim.lr cannot be removed"),
        ("optim.lr", "'optim.lr' is not key=value"),
        ("--unknown", "there is no option --unknown"),
        ("seed=-1", "seed is -1; give 0 to 4294967295"),
        ("seed=20261127120000", "seed is 20261127120000; give 0 to 4294967295"),
        ("train.rdrop=-1", "train.rdrop is -1.0; give 0 or more"),
        ("train.ema=1", "train.ema is 1.0; give a decay in (0, 1), such as 0.999, or 0 for none"),
        ("train.ema=-0.1", "train.ema is -0.1; give a decay"),
        ("optim.lr=nan", "optim.lr is nan; give a finite number"),
        ("optim.lr=0.1,0.2", "optim.lr has several values; give one, or add --multirun"),
        ("model.mixer.encoder_kernel_sizes=[3,7]", "has 2 widths but model.encoder_layers is 3"),
        ("model.mixer.encoder_kernel_sizes=[3,a,7]", "encoder_kernel_sizes"),
        ("model.num_heads=5", "5 heads"),
        ("model/mixer=attention model.mixer.weight_dropout=0.1", "model.mixer has no key weight"),
        ("model.mixer.encoder_windows=[3]", "encoder_windows here; it belongs to attention"),
        ("model.mixer.query=residual", "model.mixer.query is 'residual'; give one of convolved"),
        (
            "model.mixer.normalize=false model.mixer.renormalize_edges=true",
            "renormalize_edges needs the softmax",
        ),
        ("model/mixer=kernel_attention model.mixer.temperature=0", "model.mixer.temperature is 0"),
        ("model.encoder_mixers=[attentoin]", "has 'attentoin'; did you mean attention?"),
        ("model.encoder_mixers=conv,conv,conv", "model.encoder_mixers has 'conv,conv,conv'"),
        ("model.decoder_mixers=[conv,conv]", "has 2 names but model.decoder_layers is 3"),
        ("model.encoder_mixrs=[conv]", "did you mean model.encoder_mixers?"),
        ("model.mixers.conv.encoder_kernel_sizes=[5]", "model.mixers.conv is not in use; name"),
        ("+model/mixer@model.mixers.near=attention", "model.mixers.near is not in use; name near"),
        (
            "model.encoder_mixers=[conv] model.mixers.conv.encoder_kernel_sizes=[5,5]",
            "model.mixers.conv.encoder_kernel_sizes has 2 widths but model.encoder_layers is 3",
        ),
        (
            "model.encoder_mixers=[attention] model.mixers.attention.num_heads=-1",
            "model.mixers.attention.num_heads is -1; give a positive",
        ),
        (
            "model.encoder_mixers=[attention] model.mixers.attention.encoder_window=[7]",
            "encoder_window; did you mean model.mixers.attention.encoder_windows?",
        ),
        ("tokenizer.vocabulary=separate", "model.tying=all needs one vocabulary"),
        ("runtime.device=cpu runtime.precision=fp16", "fp16 needs a GPU"),
        ("batch.max_length=9999", "batch.max_length is 9999, more than batch.max_tokens"),
        ("schedule.period_mult=2 schedule=inverse_sqrt", "schedule"),
        ("train.max_steps=[1,2", "cannot be read; quote twice"),
        ("optim.lr=0", "optim.lr is 0.0; give a positive"),
        ("optim.lr=1e400", "optim.lr is inf; give a finite"),
        ("optim.beta1=1", "optim.beta1 is 1.0"),
        ("optim.clip_norm=-1", "optim.clip_norm is -1.0"),
        ("model.dim=0", "model.dim is 0"),
        ("model.ffn_dim=-1", "model.ffn_dim is -1"),
        ("model.dropout=1", "model.dropout is 1.0"),
        ("model.dropout=yes", "model.dropout is"),
        ("model.mixer.weight_dropout=1", "model.mixer.weight_dropout is 1.0"),
        ("model.mixer.encoder_kernel_sizes=[]", "model.mixer.encoder_kernel_sizes is []"),
        ("model.mixer.encoder_kernel_sizes=[0]", "model.mixer.encoder_kernel_sizes is [0]"),
        ("tokenizer.vocab_size=0", "tokenizer.vocab_size is 0"),
        ("tokenizer.sampling=1", "tokenizer.sampling is 1.0"),
        ("tokenizer.tgt_model=x", "tokenizer.tgt_model is given without"),
        ("tokenizer.kind=word", "tokenizer.kind is 'word'; give one of"),
        ("tokenizer.kind=fairseq", "give tokenizer.src_model and tokenizer.tgt_model, the dict"),
        ("tokenizer.src_codes=x", "belong to tokenizer.kind=fairseq"),
        ("tokenizer.tgt_codes=x", "tokenizer.tgt_codes is given without"),
        (
            "tokenizer=fairseq tokenizer.src_model=x tokenizer.src_moses.lang=' '",
            "lang of Moses is",
        ),
        ("batch.max_tokens=0", "batch.max_tokens is 0"),
        ("batch.pad_multiple=99999999999", "batch.pad_multiple is 99999999999, more than batch.ma"),
        ("batch.num_workers=-1", "batch.num_workers is -1"),
        ("train.max_steps=0", "train.max_steps is 0"),
        ("train.max_steps=null", "train.max_steps is 'null'"),
        ("train.label_smoothing=1", "train.label_smoothing is 1.0"),
        ("train.max_rewinds=-1", "train.max_rewinds is -1"),
        ("checkpoint.keep_last=1", "checkpoint.keep_last is 1"),
        ("checkpoint.average_last=99", "checkpoint.average_last is 99"),
        ("checkpoint.on_failure=ignore", "checkpoint.on_failure is 'ignore'; give one of stop"),
        ("runtime.threads=0", "runtime.threads is 0"),
        ("runtime.threads=3000000000", "runtime.threads is 3000000000; give 1 to 1024"),
        ("runtime.precision=fp8", "runtime.precision is 'fp8'; give one of auto, fp32"),
        ("data.temperature=0.5", "data.temperature is 0.5"),
        ("data.filter.max_ratio=0", "data.filter.max_ratio is 0.0"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps is -1"),
        ("schedule.warmup_init_lr=-1", "schedule.warmup_init_lr is -1.0"),
        ("schedule=cosine schedule.min_lr=-1", "schedule.min_lr is -1.0"),
        ("schedule=cosine schedule.period_mult=nan", "schedule.period_mult is nan"),
        ("decode.shortlist=auto", "decode.shortlist is for translation; leave it out"),
        ("decode.channel_weight=1", "decode.channel_weight is for translation; leave it out"),
        ("decode.beam_size=abc", "decode.beam_size is 'abc'; give a whole number"),
        ("seed=${oops}", "oops"),
    ],
)
def test_every_mistake_gives_one_line_that_helps(line: str, message: str) -> None:
    found = complaint("train", f"experiment=demo {line}")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        ("train", "", "no value for run_dir; add run_dir=..."),
        ("train", "run_dir=x data=text", "no value for data.src_lang"),
        ("train", "run_dir=", "run_dir"),
        ("train", "run_dir=x data.valid=null", "data.valid is null"),
        ("prepare", "out=x", "no data is chosen; give data=NAME, one of cldr, cnn_dm"),
        ("prepare", "data=cldr", "no value for out; add out=..."),
        ("prepare", "data=cldr out=x hold_out_every=23", "set data.valid=null"),
        ("prepare", "data=cldr out=x data.valid=null", "give one of them"),
        ("prepare", "data=cldr out=x data.valid=null hold_out_every=1", "hold_out_every is 1"),
        ("prepare", "data=cldr out=x part_pairs=0", "part_pairs is 0"),
        ("translate", "", "no value for run_dir"),
        ("translate", "run_dir=x optim.lr=1", "there is no key optim.lr"),
        ("translate", "run_dir=x checkpoint=newest", "checkpoint is 'newest'; give auto, average"),
        ("translate", "run_dir=x decode.nbest=3", "set nbest_format=tsv"),
        ("translate", "run_dir=x decode.nbest=9 nbest_format=tsv", "give 1 to decode.beam_size"),
        ("translate", "run_dir=x decode.shortlist=' '", "give auto, the path of a file, or null"),
        ("translate", "run_dir=x decode.beam_size=0", "decode.beam_size is 0"),
        ("translate", "run_dir=x decode.beam_groups=2", "beam_groups is 2; give a divisor"),
        ("translate", "run_dir=x decode.mbr=chrf", "set decode.sampling=true"),
        ("translate", "run_dir=x decode.channel_weight=1", "there is no channel; give channel=RUN"),
        ("translate", "run_dir=x channel=y", "channel is given, but decode.channel_weight is 0"),
        (
            "translate",
            "run_dir=x channel=y decode.channel_weight=1 runtime.precision=int8",
            "a channel scores what they find; set fp32 or bf16",
        ),
        ("translate", "run_dir=x channel=' ' decode.channel_weight=1", "channel has an empty name"),
        ("eval", "run_dir=x decode.channel_weight=1", "there is no channel; give channel=RUN"),
        (
            "eval",
            "hyp=y ref=r channel=z decode.channel_weight=1",
            "channel orders the outputs of a run; give run_dir=RUN",
        ),
        (
            "eval",
            "run_dir=x score=true channel=z decode.channel_weight=1",
            "score=true translates nothing that channel could order",
        ),
        ("translate", "run_dir=x decode.mbr=ter", "give one of chrf, bleu, or null"),
        ("translate", "run_dir=x decode=sampling decode.mbr=bleu", "decode.beam_size is 1"),
        ("translate", "run_dir=x decode.alignments=true", "give alignments=FILE or nbest_format"),
        ("translate", "run_dir=x alignments=y output=y", "alignments=y would overwrite output=y"),
        ("translate", "run_dir=x alignments=./y output=y", "./y would overwrite output=y; give"),
        ("translate", "run_dir=x input=y output=./y overwrite=true", "would overwrite input=y"),
        ("translate", "run_dir=x prefix=y output=y overwrite=true", "would overwrite prefix=y"),
        ("translate", "run_dir=x input=y alignments=y", "alignments=y would overwrite input=y"),
        ("translate", "run_dir=x data=text", "data cannot be chosen here; --help lists"),
        ("train", "experiment=demo recipe=multi30k", "recipe cannot be chosen here; --help lists"),
        ("train", "run_dir=x '+data.train.b={src: c'", "cannot be read; quote twice"),
        ("translate", "run_dir=x runtime.compile=true", "lcmt-translate trains nothing; leave it"),
        ("translate", "run_dir=", "run_dir"),
        ("eval", "run_dir=x runtime.compile=true", "lcmt-eval trains nothing; leave it out"),
        ("eval", "", "nothing to score"),
        ("eval", "run_dir=x hyp=y", "both run_dir and hyp are given"),
        ("eval", "hyp=y", "hyp needs references"),
        ("eval", "run_dir=x src=a", "src needs references"),
        ("eval", "run_dir=x ref=a", "ref needs the source"),
        ("eval", "run_dir=x test_set=wmt14/full", "test_set and langpair go together"),
        ("eval", "hyp=y ref=r metrics=bleurt", "metrics"),
        ("eval", "hyp=y ref=r metrics=bleu,ter,bleu", "metrics has bleu twice"),
        ("eval", "hyp=[y,y] ref=r", "hyp names y twice"),
        ("eval", "hyp=[y,\\'\\'] ref=r", "hyp has an empty name"),
        ("eval", "hyp=y ref=r output=o", "output takes the translations of a run"),
        ("eval", "run_dir=[x,z] output=o", "output names 1 files for 2 runs"),
        ("eval", "run_dir=x src=s ref=r output=./r", "output=./r would overwrite ref=r; give"),
        ("eval", "run_dir=x src=s ref=r output=a/../s", "output=a/../s would overwrite src=s"),
        ("eval", "hyp=[y,z] ref=r json=z", "json=z would overwrite hyp=z; give json another file"),
        ("eval", "run_dir=x output=o json=./o", "json=./o would overwrite output=o"),
        ("eval", "run_dir=[x,z] output=[o,./o]", "output=./o would overwrite output=o"),
        ("eval", "hyp=y ref=r resamples=39", "give 40 or more"),
        ("eval", "hyp=y ref=r worst=-1", "worst is -1"),
        ("eval", "hyp=y ref=r latency=true", "give run_dir=RUN in place of hyp"),
        ("eval", "run_dir=x latency=true latency_sentences=0", "latency_sentences is 0"),
        ("eval", "run_dir=x latency_sentences=9", "latency=true times; set it"),
        ("eval", "hyp=y ref=r checkpoint=best", "checkpoint is one of a run"),
        ("eval", "run_dir=x decode.nbest=2", "decode.nbest gives more translations than"),
        ("eval", "run_dir=x score_format=jsonl", "score_format is that of score=true"),
        ("eval", "hyp=y ref=r score=true", "give one run_dir"),
        ("eval", "run_dir=[x,z] score=true", "give one run_dir"),
        ("eval", "run_dir=x score=true worst=3", "score=true translates nothing that worst"),
        ("eval", "run_dir=x score=true runtime.precision=int8", "int8 could be of; set fp32 or"),
        ("eval", "run_dir=x runtime.precision=auto", "auto is for training; translate with fp32"),
        ("translate", "run_dir=x runtime.precision=auto", "auto is for training; translate with"),
        ("translate", "run_dir=x decode.temperature=0.8", "of sampling; set decode.sampling=true"),
        ("translate", "run_dir=x decode.top_k=5", "of sampling; set decode.sampling=true"),
        ("translate", "run_dir=x decode.top_p=0.9", "of sampling; set decode.sampling=true"),
        ("eval", "hyp=y ref=r significance=t", "one of bootstrap, randomization"),
    ],
)
def test_so_does_every_command(command: str, line: str, message: str) -> None:
    assert message in complaint(command, line)


@pytest.mark.parametrize("path", ["a=b", "a,b", "a b", "[a]", "{a}", "ä", "a'b", "${a", "a\\b"])
def test_paths_are_taken_as_they_stand(path: str) -> None:
    if "${" in path:
        assert "close every ${...}" in complaint("translate", f"run_dir='{path}'")
        return
    assert composed("translate", shlex.join([f"run_dir=runs/{path}"])).run_dir == [f"runs/{path}"]
    if path[0] not in "[{":  # brackets are for several references
        assert composed("eval", shlex.join([f"hyp={path}", f"ref={path}"])).ref == [path]


def test_a_corpus_is_added_by_its_fields() -> None:
    line = (
        f"run_dir=x data=text {TEXT} +data.train.back.format=text "
        "+data.train.back.src='made=1,2.txt' +data.train.back.tgt=real data.train.back.weight=0.5"
    )
    main, back = composed("train", line).data.train.values()
    assert (main.src, back.src, back.tgt, back.weight) == ("a", "made=1,2.txt", "real", 0.5)
    wrong = f"run_dir=x data=text {TEXT} +data.train.back.fromat=text"
    assert complaint("train", wrong) == (
        "there is no key data.train.back.fromat; did you mean data.train.back.format?"
    )
    missing = f"run_dir=x data=text {TEXT} +data.train.back.format=text +data.train.back.src=a"
    assert "give src=FILE and tgt=FILE" in complaint("train", missing)


def test_a_test_set_is_added_where_there_is_none() -> None:
    line = f"run_dir=x data=text {TEXT}"
    assert composed("train", line).data.test is None
    for words in (
        "data.test.format=text data.test.src='made=1,2.txt' data.test.tgt=real",
        "+data.test.format=text +data.test.src='made=1,2.txt' +data.test.tgt=real",
        "'data.test={format: text, src: \"made=1,2.txt\", tgt: real}'",
    ):
        found = composed("train", f"{line} {words}").data.test
        assert (found.format.name, found.src, found.tgt) == ("text", "made=1,2.txt", "real")
    own = composed("train", "run_dir=x experiment=multi30k_tiny data.test.src=mine").data.test
    assert own.src == "mine" and own.tgt.endswith("test_2016_flickr.de.gz")
    told = complaint("train", f"{line} data.test.src=a data.test.tgt=b")
    assert "data.test.format" in told
    assert complaint("train", f"{line} data.test.format=text data.test.scr=a").startswith(
        "there is no key data.test.scr; "
    )


def test_several_run_folders_are_a_list_and_the_values_of_a_sweep_are_not() -> None:
    assert composed("translate", "run_dir=[runs/a,runs/b]").run_dir == ["runs/a", "runs/b"]
    root, registers = read_root(ROOTS["translate"])
    found = {
        line: [
            plain["run_dir"]
            for plain in compose("translate", [line, "--multirun"], root=root, registers=registers)
        ]
        for line in ("run_dir=runs/a", "run_dir=runs/a,runs/b", "run_dir=[a,b],[c]")
    }
    assert [*found.values()] == [[["runs/a"]], [["runs/a"], ["runs/b"]], [["a", "b"], ["c"]]]


def test_the_command_line_wins_over_the_experiment_and_it_over_groups() -> None:
    plain = composed("train", "run_dir=x model=tiny")
    demo = composed("train", "experiment=demo")
    mine = composed("train", "experiment=demo model.dropout=0.25")
    assert (plain.model.dropout, demo.model.dropout, mine.model.dropout) == (0.3, 0.1, 0.25)


def test_a_sweep_gives_each_run_a_folder_of_its_own() -> None:
    root, registers = read_root("TrainRunConfig")
    words = ["experiment=demo", "run_dir=runs/s", "--multirun", "seed=1,2"]
    configs = compose("train", words, root=root, registers=registers)
    assert [(each["run_dir"], each["seed"]) for each in configs] == [
        ("runs/s/experiment=demo,seed=1", 1),
        ("runs/s/experiment=demo,seed=2", 2),
    ]


def test_the_folder_of_a_sweep_of_many_words_can_be_made(tmp_path: Path) -> None:
    root, registers = read_root("TrainRunConfig")
    path = "ü/" * 150
    words = ["experiment=demo", f"run_dir={tmp_path}", f"tokenizer.src_model='{path}'"]
    configs = compose("train", [*words, "--multirun", "seed=1,2"], root=root, registers=registers)
    folders = [Path(each["run_dir"]) for each in configs]
    for folder in folders:
        folder.mkdir()
        assert folder.parent == tmp_path
        assert folder.name.startswith("experiment=demo,")


def test_yaml_runs_no_code_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    config = composed("train", "experiment=demo")
    text = to_yaml(config)
    for change, message in [
        (("seed: 1", "seed: !!python/object/apply:os.getpid []"), "cannot be read as YAML"),
        (("seed: 1", "seed: 1\n_target_: os.getpid"), "there is no key _target_"),
        (("seed: 1", "seed: 1\nseed: 2"), "cannot be read as YAML"),
        (("name: dynamicconv", "name: dynamiccomb"), "did you mean dynamicconv?"),
    ]:
        (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
        with pytest.raises(Exception, match="config.yaml") as caught:
            real.load_run_config(tmp_path)
        assert message in str(caught.value)
    (tmp_path / "config.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="holds no keys"):
        read_yaml(tmp_path / "config.yaml")
