"""Loss and gradient of stage 3 against TRL's own `loss_type="dapo"` code on the same tensors, live groups only.

TRL takes padded rows and runs its own forward; ours takes the flat tokens of the same model's logits. Runs where trl is
installed (the `dev` extra brings it).
"""

import pytest
import torch
from torch import Tensor

from lineside.backends.reference import entropy_of as token_entropy
from lineside.training.advantages import group_advantages
from lineside.training.losses import dapo_loss

pytest.importorskip("trl")

VOCABULARY = 23
PAD = 0
LENGTHS = [4, 2, 7, 5, 1, 6]  # two prompts x three rollouts
REWARDS = [[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]]
PROMPT_LENGTH = 3


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A real GRPOTrainer round a one-layer Llama; only its loss is called."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), pad_token="w0", eos_token="w2"
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=PAD,
    )  # fmt: skip
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), loss_type="dapo", epsilon=0.2, epsilon_high=0.28, beta=0.0,
        num_generations=3, per_device_train_batch_size=6, gradient_accumulation_steps=1, max_completion_length=8,
        temperature=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4 w5", "w6 w7 w8"]}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1  # set by transformers' loop, which is not run here
    return trainer


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Rows as TRL wants them: prompts of one length, completions padded on the right."""
    rng = torch.Generator().manual_seed(1)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    prompt = torch.randint(3, VOCABULARY, (2, PROMPT_LENGTH), generator=rng).repeat_interleave(3, 0)
    completion = torch.randint(3, VOCABULARY, mask.shape, generator=rng).masked_fill(~mask, PAD)
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask.long(),
        "advantages": group_advantages(REWARDS).flatten(),
        "num_items_in_batch": mask.sum(),
    }


def row_logprobs(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (rows, completion) and logits of the completion's tokens, by a plain forward."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, PROMPT_LENGTH - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0], logits


@pytest.mark.parametrize("updates", ["one update", "second update"])
def test_loss_gradient_and_metrics_equal_trl(trainer, batch, updates):
    model = trainer.model.train()
    live = batch["completion_mask"].bool()
    batch = dict(batch)
    if updates == "second update":  # an old policy far enough away that both sides of the clip act
        noise = torch.randn(live.shape, generator=torch.Generator().manual_seed(2))
        batch["old_per_token_logps"] = row_logprobs(model, batch)[0].detach() + 0.4 * noise

    model.zero_grad()
    trainer._metrics["train"].clear()
    theirs = trainer._compute_loss(model, batch)
    theirs.backward()
    their_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    their_metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    model.zero_grad()
    logprobs, logits = row_logprobs(model, batch)
    ours, metrics = dapo_loss(
        logprobs[live],
        batch["advantages"].repeat_interleave(torch.tensor(LENGTHS)),
        int(live.sum()),
        old_logprobs_T=batch["old_per_token_logps"][live] if "old_per_token_logps" in batch else None,
    )
    ours.backward()

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert any(bool(g.abs().max() > 1e-3) for g in their_gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, their_gradients[name], rtol=1e-4, atol=1e-6)
    clips = their_metrics["clip_ratio/low_mean"], their_metrics["clip_ratio/high_mean"]
    assert (float(metrics["clip/low"]), float(metrics["clip/high"])) == pytest.approx(clips)
    assert float(token_entropy(logits[live]).mean()) == pytest.approx(their_metrics["entropy"], rel=1e-5)
    if updates == "second update":
        assert min(clips) > 0  # else this would not have tested the clip
