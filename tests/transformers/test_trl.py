"""TRL's trainers with `R8Mixin` before them; skipped where trl is not installed."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from learnit_r8.transformers import R8Mixin

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]

WORDS = [chr(97 + number) for number in range(26)]
QUIET = {
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "report_to": [],
    "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
    "max_length": 32,
}  # fmt: skip


class R8SFTTrainer(R8Mixin, SFTTrainer):
    pass


class R8DPOTrainer(R8Mixin, DPOTrainer):
    pass


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*WORDS, "</s>", "[UNK]"])}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>", unk_token="[UNK]")


def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=28, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=26))


def sentence(number, length):
    return " ".join(WORDS[(number * step) % 26] for step in range(1, length + 1))


def sft(folder, **more):
    texts = datasets.Dataset.from_dict({"text": [sentence(number, 4 + number % 7) for number in range(24)]})
    args = SFTConfig(output_dir=str(folder), **{**QUIET, **more})
    return R8SFTTrainer(model=model(), args=args, train_dataset=texts, processing_class=tokenizer())


def digest(trainer):
    return [each.tolist() for each in trainer.model.parameters()], trainer.r8.scheduler.table.loss.tolist()


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 3}], ids=str)
def test_sft(tmp_path, more):
    """SFTTrainer: the loss of every sequence is known, and its own checkpoint resumes exactly."""
    whole = sft(tmp_path, save_strategy="steps", save_steps=1, **{**more, "save_total_limit": None})
    whole.train()
    resumed = sft(tmp_path, **more)
    resumed.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-3")

    assert whole.r8.scheduler.table.source == "exact"
    assert set(whole.r8.scheduler.table.usage_count.tolist()) == {2}
    assert digest(resumed) == digest(whole)


def test_sft_of_packed_rows(tmp_path):
    """With packing a packed row is a sample."""
    trainer = sft(tmp_path, packing=True, packing_strategy="wrapped", max_length=16)
    trainer.train()
    r8 = trainer.r8.scheduler

    assert r8.table.num_samples < 24
    assert set(r8.table.usage_count.tolist()) == {2}


def test_dpo(tmp_path):
    """DPOTrainer: its loss belongs to pairs, so losses of samples are estimated from means of batches."""
    pairs = datasets.Dataset.from_dict(
        {
            "prompt": [sentence(number, 3) for number in range(16)],
            "chosen": [" " + sentence(number + 1, 4) for number in range(16)],
            "rejected": [" " + sentence(number + 5, 4) for number in range(16)],
        }
    )
    trainer = R8DPOTrainer(
        model=model(), ref_model=model(), args=DPOConfig(output_dir=str(tmp_path), **QUIET), train_dataset=pairs,
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.train()

    assert trainer.r8.scheduler.table.source == "batch means of 4"
    assert (trainer.state.global_step, trainer.r8.scheduler.global_step) == (8, 8)


@pytest.mark.parametrize("draws", [True, False])
def test_kto(tmp_path, draws):
    """KTOTrainer compares the answers of a batch with each other: its loss is a mean of the batch."""
    kto = pytest.importorskip("trl.experimental.kto")
    rows = datasets.Dataset.from_dict(
        {
            "prompt": [sentence(number, 3) for number in range(16)],
            "completion": [" " + sentence(number + 1, 4) for number in range(16)],
            "label": [number % 2 == 0 for number in range(16)],
        }
    )
    kind = type("R8KTOTrainer", (R8Mixin, kto.KTOTrainer), {})
    trainer = kind(
        model=model(), ref_model=model(), args=kto.KTOConfig(output_dir=str(tmp_path), **QUIET), train_dataset=rows,
        processing_class=tokenizer(), r8={} if draws else {"batches": False},
    )  # fmt: skip
    if draws:
        with pytest.raises(ValueError, match="'batches': False"):
            trainer.train()
        return
    trainer.train()

    assert (trainer.state.global_step, trainer.r8.scheduler.global_step) == (8, 8)


def test_trainers_with_samplers_of_their_own(tmp_path):
    """GRPO and RLOO draw their samples in their own way: refused, and watched with the Trainer's own batches."""
    trl = pytest.importorskip("trl")
    rows = datasets.Dataset.from_dict({"prompt": [sentence(number, 4) for number in range(8)]})
    quiet = {name: value for name, value in QUIET.items() if name != "max_length"}
    for name in ("GRPO", "RLOO"):
        config, base = getattr(trl, f"{name}Config"), getattr(trl, f"{name}Trainer")
        kind = type(f"R8{name}", (R8Mixin, base), {})
        args = config(
            output_dir=str(tmp_path), num_generations=2, max_completion_length=4, max_steps=3, beta=0.0,
            **{**quiet, "num_train_epochs": 1},
        )  # fmt: skip
        parts = {
            "model": model(), "args": args, "train_dataset": rows, "processing_class": tokenizer(),
            "reward_funcs": lambda completions, **_: [float(len(each)) for each in completions],
        }  # fmt: skip
        with pytest.raises(ValueError, match="'batches': False"):
            kind(**parts).train()
        trainer = kind(**parts, r8={"batches": False, "guard": "finite"})
        trainer.train()

        assert trainer.r8.scheduler.global_step >= 3
