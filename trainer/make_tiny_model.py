"""Make a tiny model for tests and for trying things out: a Llama of 2 layers and a byte-level tokenizer.

usage: python make_tiny_model.py <directory>

A Hugging Face folder, the same bytes each time, from nothing: no network, no hub.
A directory that has one is left alone.
"""

import pathlib
import random
import shutil
import sys
import tempfile

SEED = 7
VOCABULARY = 512
POSITIONS = 256
WORDS = (
    "the a one this that model learner teacher data step loss rate batch token word line text number river stone "
    "light reads writes counts finds takes gives holds moves grows falls small large quick slow warm cold deep near "
    "far and or then while because before after under over with without between into from"
)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    target = pathlib.Path(sys.argv[1]).absolute()
    if (target / "config.json").is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as directory:
        folder = pathlib.Path(directory, "model")
        make(folder)
        try:
            folder.rename(target)  # whole or not at all
        except OSError:
            if not (target / "config.json").is_file():
                shutil.rmtree(target)  # something unfinished stood there
                folder.rename(target)


def make(folder: pathlib.Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=POSITIONS
    )


def sentences() -> list[str]:
    chance = random.Random(SEED)
    return [" ".join(chance.choices(WORDS.split(), k=chance.randint(8, 40))) for _ in range(500)]


if __name__ == "__main__":
    main()
