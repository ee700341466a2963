"""A Trainer as anybody writes one, with accelerate's FSDP, that resumes a folder: `plain_trainer.py MODEL FOLDER`.

On a CPU accelerate falls back to DDP without a word, so its state is set as it is on a GPU.
"""

import sys
import tempfile

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

model, folder = sys.argv[1:]
make = Trainer.create_accelerator_and_postprocess


def with_fsdp(self):
    make(self)
    state = AcceleratorState._shared_state
    state["distributed_type"] = DistributedType.FSDP
    state["fsdp_plugin"] = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
    self.is_fsdp_enabled = True


Trainer.create_accelerator_and_postprocess = with_fsdp
network = AutoModelForCausalLM.from_pretrained(model)
with tempfile.TemporaryDirectory() as output:
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=62,
        per_device_train_batch_size=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        fsdp=True,
        fsdp_config={
            "version": 2,
            "state_dict_type": "SHARDED_STATE_DICT",
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        },
    )
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(400)]
    trainer = Trainer(model=network, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=folder)
    weight = next(iter(trainer.model.parameters()))
    moments = next(iter(trainer.optimizer.optimizer.state.values()))
    if trainer.args.process_index == 0:
        print(f"{type(weight).__name__} at step {trainer.state.global_step}, {float(moments['step']):g} updates")  # noqa: T201
