"""Steps of the tiny model in one process: `steps.py here|alone FRAMEWORK MODEL DATA STORE` prints seconds of a step.

`alone` is the framework's library as its users write it, on the same texts, with the same optimizer and logging.
"""

import contextlib
import os
import statistics
import sys
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import torch  # noqa: E402

torch.set_num_threads(1)
STEPS, WARM, TEXTS = 400, 100, 4
times = []


def tick(*_, **__):
    times.append(time.perf_counter())


def here(framework, model, data, store):
    from alone import train_alone

    from training.steps import Steps

    after = Steps.after

    def and_tick(self, *arguments):
        tick()
        return after(self, *arguments)

    Steps.after = and_tick
    train_alone(store, model, data, framework, "01980001-0000-7000-8000-000000000000", **settings())


def settings():
    return {
        "max_steps": STEPS,
        "save_steps": 10 * STEPS,
        "logging_steps": 10,
        "batch_size": TEXTS,
        "gradient_accumulation": 1,
        "lr": 1e-4,
    }


def texts_of(model, data):
    """The texts, of which there is one, and what makes a batch of some of them: as it is trained on here."""
    import json

    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(model)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    text = json.loads(Path(data).read_text())["text"] + tokenizer.eos_token

    def batch_of(texts):
        found = tokenizer(texts)["input_ids"]
        return dict(collator([{"input_ids": ids} for ids in found]))

    return [text] * (STEPS * TEXTS), batch_of


def network_of(model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()


def alone_hf(model, data, store):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Tick(TrainerCallback):
        on_step_end = tick

    texts, batch_of = texts_of(model, data)
    arguments = TrainingArguments(
        output_dir=store,
        max_steps=STEPS,
        per_device_train_batch_size=TEXTS,
        learning_rate=1e-4,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    network = network_of(model)
    Trainer(model=network, args=arguments, train_dataset=texts, data_collator=batch_of, callbacks=[Tick()]).train()


def alone_nemo(model, data, store):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network_of(model)

        def training_step(self, batch, _):
            loss = self.network(**batch, use_cache=False).loss
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

        on_train_batch_end = tick

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        log_every_n_steps=10,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    texts, batch_of = texts_of(model, data)
    trainer.fit(Module(), torch.utils.data.DataLoader(texts, batch_size=TEXTS, collate_fn=batch_of))


def alone_meta(model, data, store):
    network = network_of(model)
    texts, batch_of = texts_of(model, data)
    adamw = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / STEPS)
    batches = torch.utils.data.DataLoader(texts, batch_size=TEXTS, collate_fn=batch_of)
    for step, batch in enumerate(batches):
        loss = network(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        if step % 10 == 0:
            loss.item()
        tick()


who, framework, model, data, store = sys.argv[1:]
with contextlib.redirect_stdout(sys.stderr):
    if who == "here":
        here(framework, model, data, store)
    else:
        {"hf": alone_hf, "nemo": alone_nemo, "meta": alone_meta}[framework](model, data, store)
took = [later - earlier for earlier, later in zip(times[WARM:], times[WARM + 1 :], strict=False)]
assert len(took) >= STEPS - WARM - 1
print(statistics.median(took))  # noqa: T201
