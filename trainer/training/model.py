"""The model: how it is looked at and loaded. export.py gives it away in the end."""

import contextlib
import inspect
import json
import logging
import math
import re
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from training.data.batches import IGNORED, Batch, predicted
from training.errors import UserError, is_of_what_was_asked, said_of

if typing.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from training.sharded import Split


OWN_NUMBERS = "own_dtype"  # where a model's configuration says in what numbers it came, while it is trained in others
WRAPPERS = ("module.", "_orig_mod.", "model._orig_mod.", "base_model.model.")  # DDP, torch.compile, PEFT
MOST_NAMED = 3
SAFETENSORS = {
    f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
}
ROUTER_LOSS = (
    "router_aux_loss_coef",
    "aux_loss_coef",
)  # how much the balance of experts counts, in transformers' models
TOLERANCE = 1e-3  # of a loss; bf16 is that coarse
# Masks that older versions saved beside the weights, and the head that a reward model has.
NO_WEIGHT = re.compile(r"(^|\.)(masked_bias|causal_mask)$|(^|\.)attn(\.attention)?\.bias$|^v_head\.")

Shapes = Mapping[str, "torch.Size"]  # by the weight's name

logger = logging.getLogger(__name__)


def unknown_tokens(source: str) -> list[str]:
    """The tokens that were added to a folder's tokenizer and lie beyond its model's embeddings, as they are written.

    An image's may do so in the text part of a model. A text that has one cannot be trained on.
    """
    config, tokenizer = described(source)
    with loading(source):
        rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return []
    return sorted(str(token) for number, token in tokenizer.added_tokens_decoder.items() if number >= rows)


def config_of(source: str) -> "PreTrainedConfig":
    """The configuration of a folder that may have nothing else. Raises UserError."""
    from transformers import AutoConfig

    forbid_own_code()
    with loading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            # Nobody reads these here, and with torch's own attention a configuration that has them cannot be saved.
            part.output_attentions = part.output_hidden_states = False
    check_trainable(source, config)
    return config


def normalizer(source: str) -> "Callable[[str], str] | None":
    """What a folder's tokenizer does with a text before it looks for added tokens; None where that is nothing.

    Tokens that are found in the text as it is have no part in it.
    """
    _, tokenizer = described(source)
    found = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if found is None or not any(token.normalized for token in tokenizer.added_tokens_decoder.values()):
        return None
    return found.normalize_str


def described(source: str) -> "tuple[PreTrainedConfig, PreTrainedTokenizerBase]":
    """Configuration and tokenizer of a folder; its weights are not looked at. Raises UserError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    from training import untrusted

    config = config_of(source)
    with loading(source), untrusted.data_only(Path(source)):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):  # its file may name any class of transformers
        raise unloadable(source, TypeError(f"its tokenizer is a {type(tokenizer).__name__}"))
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = end_token(source, config, tokenizer)
    return config, tokenizer


def end_token(source: str, config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The end token that config.json names, for a tokenizer that knows of none; None where there is none such.

    Of the configuration itself it may be the default of its kind, which other tokenizers have.
    """
    said = json.loads(Path(source, "config.json").read_bytes())
    number = said.get("eos_token_id", (said.get("text_config") or {}).get("eos_token_id"))
    number = next(iter(number), None) if isinstance(number, list) else number
    rows = getattr(config.get_text_config(), "vocab_size", 0)
    return tokenizer.convert_ids_to_tokens(number) if type(number) is int and 0 <= number < rows else None


def check_trainable(source: str, config: "PreTrainedConfig") -> None:
    """Raises UserError for a model that cannot be trained as a causal language model, by its config.json."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    said = f"the model in {source}"
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UserError(
            f"{said} is quantized{f' by {method}' if method else ''}, and such weights cannot be trained: choose the "
            "model that it was made from, or save it in bf16 first"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise UserError(f"{said} is no causal language model, and nothing else is trained: it is a {config.model_type}")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise UserError(
            f"{said} is a {config.model_type} with is_decoder false: it sees the tokens that a causal language model "
            "has to predict"
        )


@contextlib.contextmanager
def loading(source: str) -> "Iterator[None]":
    """Whatever a library raises about a folder's content is a UserError."""
    try:
        yield
    except Exception as error:  # of whichever library reads the file, also one without a type of its own
        if not is_of_what_was_asked(error):
            raise
        raise unloadable(source, error) from None


def load(
    source: str, split: "Split | None" = None, *, weights: bool = True
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of a folder; together where the model is split. Without `weights` they have any values.

    Weights are fp32 whatever the file has: in bf16 small steps would be rounded away.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from training import untrusted

    config, tokenizer = described(source)
    own = numbers_of(config)
    with loading(source), untrusted.data_only(Path(source)):
        kinds = kinds_in_file(Path(source)) if weights else {}
        if split and weights:
            network, found = split.load(source, config)
        elif split:
            network = split.make(config)
        elif weights:
            network, found = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
            )
        else:
            with no_init_weights():
                network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
            network.tie_weights(recompute_mapping=False)  # transformers does it where it draws random weights
    if weights:
        check_weights(source, found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
        check_tied(source, network)
        check_numbers(source, network, kinds)
    check_tokens(source, tokenizer, embeddings(network))
    if weights:
        check_loss(source, network)
    if weights and (others := sorted({kind for kind in kinds.values() if "float" in kind} - {own})):
        logger.warning(
            "config.json says that the weights are %s, and its file has %s: the export has %s", own, named(others), own
        )
    setattr(network.config, OWN_NUMBERS, own)
    check_can_be_saved(source, network)
    network.train()  # it comes in evaluation mode
    return network, tokenizer


def numbers_of(config: "PreTrainedConfig") -> str:
    """What the weights of a model are, as torch calls it; float32 where its config.json does not say.

    That of a checkpoint has them in fp32, and says what they were.
    """
    said = [getattr(config, OWN_NUMBERS, None), config.get_text_config().dtype, config.dtype]
    names = (str(found).removeprefix("torch.") for found in said if found is not None)
    return next((name for name in names if name in ("bfloat16", "float16", "float32")), "float32")


def check_weights(
    source: str,
    missing: "Iterable[str]",
    unexpected: "Iterable[str]",
    mismatched: "Iterable[tuple[str, Sequence[int], Sequence[int]]]",
) -> None:
    """Raises UserError where the file does not have the model's weights and no others.

    Transformers makes up the missing ones at random, and passes over the others.

    `mismatched` are names with the shapes in the file and of the model. No list has weights that the model ties,
    computes or does without: transformers leaves them out.
    """
    for name, of_file, of_model in sorted(mismatched):
        here, there = (" x ".join(map(str, shape)) for shape in (of_file, of_model))
        raise UserError(
            f"the model in {source} is not what config.json describes: {name} is {here} in its file, and {there} there"
        )
    missing, unexpected = sorted(missing), sorted(name for name in unexpected if not NO_WEIGHT.search(name))
    if not missing and not unexpected:
        return
    said = [f"its file lacks {named(missing)}"] if missing else []
    said += [f"the model has no {named(unexpected)}"] if unexpected else []
    for prefix in WRAPPERS:
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            said.append(f"a wrapper has left `{prefix}` before the names: save the model that it wraps")
    raise UserError(f"the model in {source} is not what config.json describes: {'; '.join(said)}")


def check_tied(source: str, network: "PreTrainedModel") -> None:
    """Raises UserError where config.json ties weights that the file has as different ones.

    transformers then leaves them untied, and where the model is split one of them would be thrown away.
    """
    from training.sharded import without_weights

    tied = without_weights(network.config).all_tied_weights_keys
    for name in sorted(tied.keys() - network.all_tied_weights_keys.keys()):
        raise UserError(
            f"the model in {source} is not what config.json describes: it ties {name} to {tied[name]}, and its file "
            "has other numbers for each: say tie_word_embeddings false there, or leave one of them out"
        )


def kinds_in_file(folder: Path) -> dict[str, str]:
    """What each weight in a folder's files is, as torch calls it."""
    import torch
    from safetensors import safe_open

    from training.model_files import WEIGHTS, parts

    first = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        return {}
    found: dict[str, str] = {}
    for name in parts(first, (folder / first).read_bytes()) if first.endswith(".json") else {first}:
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                said = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            found |= {key: SAFETENSORS.get(kind, kind.replace("F", "float").lower()) for key, kind in said.items()}
        else:
            read = torch.load(folder / name, map_location="meta", weights_only=True)
            found |= {key: str(tensor.dtype)[6:] for key, tensor in read.items() if isinstance(tensor, torch.Tensor)}
    return found


def check_numbers(source: str, network: "PreTrainedModel", kinds: Mapping[str, str]) -> None:
    """Raises UserError where a weight is no number that can be trained; together where the model is split.

    Whole numbers are a quantized model's, and transformers makes floating-point ones of them as they are.
    """
    import torch

    tensors = [(name.rpartition(".")[2], name, weight) for name, weight in network.named_parameters()]
    last = {part for part, _, _ in tensors}
    for name, kind in kinds.items():
        if "float" not in kind and name.rpartition(".")[2] in last and not NO_WEIGHT.search(name):
            raise UserError(
                f"the model in {source} is quantized, or broken: {name} is {kind} in its file, and only floating-point "
                "weights can be trained"
            )
    own = [weight.to_local() if hasattr(weight, "to_local") else weight for _, _, weight in tensors]
    broken = [sum(map(float, torch.aminmax(weight.detach()))) if weight.numel() else 0.0 for weight in own]
    flags = torch.tensor([not math.isfinite(number) for number in broken], dtype=torch.int32, device=own[0].device)
    if len(own) and any(hasattr(weight, "to_local") for _, _, weight in tensors):
        torch.distributed.all_reduce(flags)
    names = [name for (_, name, _), flag in zip(tensors, flags.tolist(), strict=True) if flag]
    if names:
        raise UserError(f"the model in {source} has numbers that are not finite in its file: {named(names)}")


def check_tokens(source: str, tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Raises UserError where the tokenizer is another model's.

    Tokens that were added to it may lie beyond the embedding, as an image's do in the text part of a model: the
    collator refuses a text that has one.
    """
    needed = (token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)
    most = max([tokenizer.vocab_size - 1, *needed])
    if most >= rows:
        raise UserError(
            f"the tokenizer in {source} is not the model's: it has ids up to {most}, and the model {rows} embeddings"
        )


def embeddings(network: "PreTrainedModel") -> int:
    """How many tokens the model knows; their ids begin at 0."""
    return network.get_input_embeddings().weight.shape[0]


def named(weights: Sequence[str]) -> str:
    """A few of their names, and how many there are."""
    more = f" and {len(weights) - MOST_NAMED} more weights" if len(weights) > MOST_NAMED else ""
    return ", ".join(weights[:MOST_NAMED]) + more


def forbid_own_code() -> None:
    """From here on transformers runs no code of a model's folder in this process, and asks nobody whether it may.

    `trust_remote_code=False` holds for one call and is not passed on to what that call loads: the class that a
    tokenizer's file names, and the parts of a model.
    """
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # the seconds that it would wait for an answer
    dynamic_module_utils.check_imports = refuse_code  # which it calls before it copies and runs a file


def refuse_code(file: typing.Any) -> typing.NoReturn:
    raise UserError(f"{file} is code of its own that a model brings, and no such code is run: choose another MODEL_ID")


def unloadable(source: str, error: Exception) -> UserError:
    said = said_of(error)
    folder = Path(source)
    if "the backend tokenizer" in said and not (folder / "tokenizer.json").exists():
        said = f"it has no tokenizer.json. {said}"
    if isinstance(error, KeyError) and error.args:
        said += "".join(f" ({name} in config.json)" for name in fields_with(folder, error.args[0]))
    return UserError(f"the model in {source} cannot be loaded: {said}")


def fields_with(folder: Path, value: typing.Any) -> "Iterator[str]":
    """The fields of config.json that have this value, also within others."""

    def within(found: typing.Any, path: str) -> "Iterator[str]":
        if isinstance(found, dict):
            for name, item in found.items():
                yield from within(item, f"{path}.{name}" if path else name)
        elif found == value:
            yield path

    with contextlib.suppress(OSError, ValueError, RecursionError):
        yield from within(json.loads((folder / "config.json").read_bytes()), "")


def shapes(network: "PreTrainedModel") -> Shapes:
    return {name: weight.shape for name, weight in network.state_dict().items()}


def shapes_of_config(source: str) -> Shapes:
    """Those of the model that a folder's config.json describes; weights are not looked at."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    forbid_own_code()
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            return shapes(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise unloadable(source, error) from None


def saved_shapes(path: Path, part: str, prefix: str = "") -> Shapes:
    """Those that a file or a sharded folder has of the weights, which are in a part of it, with names that begin so."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from training import untrusted

    if path.is_file():
        state = untrusted.load(path)[part]
        return {name.removeprefix(prefix): tensor.shape for name, tensor in state.items()}
    prefix = f"{part}.{prefix}"
    entries = untrusted.read_metadata(path).state_dict_metadata.items()
    return {
        name.removeprefix(prefix): entry.size
        for name, entry in entries
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def check_same(model_id: str, mine: Shapes, saved: Shapes, step: int) -> None:
    """Raises UserError where a checkpoint is another model's."""
    for name in [*mine, *saved]:
        if mine.get(name) != saved.get(name):
            here, there = (" x ".join(map(str, of[name])) if name in of else "absent" for of in (mine, saved))
            raise UserError(
                f"MODEL_ID {model_id} is another model than the one of step {step}, from which this job goes on: "
                f"{name} is {here}, and there {there}"
            )


def share_router_loss(network: "PreTrainedModel", texts: int) -> None:
    """Let the loss that balances experts count once in a step of so many texts, over micro-steps and processes.

    Models add it to each batch's loss, whose sum a step takes. A batch gets its texts' part of it: one that only takes
    part, without a text, gets none. The model's configuration stays as it is.
    """
    own = {
        (module, name): weight
        for module in network.modules()
        for name in ROUTER_LOSS
        if isinstance(weight := vars(module).get(name), float | int)
    }

    def weigh(_: typing.Any, __: typing.Any, batch: dict[str, typing.Any]) -> None:
        if (labels := batch.get("labels")) is None:
            return
        part = (labels != IGNORED).any(dim=-1).sum() / texts
        for (module, name), weight in own.items():
            setattr(module, name, weight * part)

    if own:
        network.register_forward_pre_hook(weigh, with_kwargs=True)


def takes_items(network: "PreTrainedModel") -> bool:
    """Whether its loss can be divided by all tokens of a step, over batches and processes."""
    if isinstance(accepts := getattr(network, "accepts_loss_kwargs", None), bool):
        return accepts
    parameters = inspect.signature(network.forward).parameters.values()
    return any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def check_loss(source: str, network: "PreTrainedModel") -> None:
    """Raises UserError where the model's loss is not that of the next token; together where the model is split.

    Some models compare the labels with the same places, as those do that get them shifted, and others take the mean of
    each batch whatever they are told. What a model adds to the loss is left to it.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    device = next(network.parameters()).device
    if any(isinstance(module, FSDPModule) for module in network.modules()):
        network.to(device)  # the buffers
    network.eval()
    try:
        with torch.no_grad():
            is_next = is_of_next_token(network, to_device(probe(embeddings(network)), device))
    except Exception as error:  # whatever a model's own code raises
        if not is_of_what_was_asked(error):
            raise
        raise UserError(f"the model in {source} cannot be trained: {said_of(error)}") from error
    finally:
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the optimizer is to have the parts
    if not is_next:
        raise UserError(
            f"the model in {source} computes another loss than that of a causal language model: "
            f"{type(network).__name__} does not learn the next token from a text"
        )


def check_can_be_saved(source: str, network: "PreTrainedModel") -> None:
    """Raises UserError for what transformers would refuse at the first checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            network.config.save_pretrained(folder)
            if network.generation_config is not None:
                network.generation_config.save_pretrained(folder)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"the model in {source} cannot be saved as its files describe it: {said_of(error)}"
            ) from error


def probe(rows: int) -> "Batch":
    """Two short texts of different lengths."""
    import torch

    tokens = torch.tensor([[1, 2, 3, 4, 5], [3, 1, 2, 0, 0]]) % rows
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, IGNORED)}


def is_of_next_token(network: "PreTrainedModel", batch: "Batch") -> bool:
    """Whether the model's loss of a batch is what its own logits say of each next token, divided as it is told."""
    import torch

    in_all = takes_items(network)
    count = predicted(batch)

    def loss_of(items: int) -> "tuple[float, float]":
        """What the model says, and what it should be."""
        found = network(**batch, **({"num_items_in_batch": items, "use_cache": False} if in_all else {}))
        logits, labels = found.logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten()
        expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return float(found.loss), float(expected) / items

    (mine, expected), again = loss_of(count), None
    if not (math.isfinite(mine) and math.isfinite(expected)):
        return True  # training tells so
    if not math.isclose(mine, expected, rel_tol=TOLERANCE) and in_all:
        again = loss_of(2 * count)
        mine, expected = mine - again[0], expected - again[1]
    return math.isclose(mine, expected, rel_tol=TOLERANCE)


def evaluate(network: "PreTrainedModel", batches: "Iterable[Batch]", device: "torch.device") -> tuple[float, float]:
    """The sum of the losses of all tokens that the model has to predict, and how many they are."""
    import torch

    network.eval()
    loss, tokens = 0.0, 0
    in_all = takes_items(network)
    with torch.no_grad():
        for batch in batches:
            told = {"num_items_in_batch": 1, "use_cache": False} if in_all else {}
            found = network(**to_device(batch, device), **told).loss
            if count := predicted(batch):
                loss, tokens = loss + float(found) * (1 if in_all else count), tokens + count
    network.train()
    return loss, tokens


def to_device(batch: "Batch", device: "torch.device") -> "Batch":
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
