"""What users write, for type checkers alone: nothing here is ever run.

``mypy`` reads it strictly. A line with ``type: ignore`` is a mistake that must be noticed: where it
is not, because something has become ``Any``, the comment is reported as unused.
"""

from pathlib import Path

import torch

from minids3 import __version__
from minids3.config import ModelConfig, get_config
from minids3.data import (
    DataError,
    PackedBatches,
    Split,
    Tokenizer,
    entropy_floor,
    load_split,
    load_text,
    load_tokenizer,
    text_split,
)
from minids3.infer import (
    KVCache,
    LatentCache,
    generate,
    generate_ids,
    make_cache,
    next_token_probs,
    sample,
    stream,
)
from minids3.model import ModelFileError, Transformer, load_model, load_shipped, save_model
from minids3.model.hf import load_hf, save_hf
from minids3.nn import to_float8
from minids3.ops.gemm import Float8Recipe, fp8_grouped_linear, fp8_linear
from minids3.ops.moe import grouped_mm, plan_dispatch
from minids3.train import (
    CheckpointError,
    History,
    TrainConfig,
    Trainer,
    evaluate,
    latest_checkpoint,
)

version: str = __version__
config: ModelConfig = get_config("mini")
tokenizer: Tokenizer = load_tokenizer()
model: Transformer = load_shipped("dense_chat")
text: str = generate(load_shipped("dense_chat"), load_tokenizer(), "hi")
for piece in stream(model, tokenizer, "hi", max_new_tokens=3, temperature=0.5, top_p=0.9, seed=1):
    print(piece.upper())
ids: list[int] = tokenizer.encode("hi", bos=True)
out: torch.Tensor = generate_ids(model, torch.tensor([ids]), 3, eos_id=tokenizer.eos_id)
print(tokenizer.decode(out[0].tolist()), tokenizer.vocab_size + 1)

generate(model, tokenizer, 3)  # type: ignore[arg-type]
generate("model", tokenizer, "hi")  # type: ignore[arg-type]
tokenizer.encode(b"bytes")  # type: ignore[arg-type]
get_config(3)  # type: ignore[arg-type]
load_split("train").tokenz  # type: ignore[attr-defined]  # noqa: B018
wrong: int = entropy_floor(load_split("train"))  # type: ignore[assignment]

fresh = Transformer(get_config("mini", num_hidden_layers=2))
logits: torch.Tensor = fresh(torch.zeros(1, 4, dtype=torch.int64))
loss: torch.Tensor = fresh.loss(out[:, :-1], out[:, 1:])
loss.backward()
parameters: int = fresh.num_parameters(mtp=False)
folder: Path = save_hf(fresh, "folder")
again: Transformer = load_hf(folder)
saved: Path = save_model(again, Path("other"))
load_model(saved)
print(to_float8(model))

train: Split = load_split("train")
mine: Split = text_split(load_text("."), tokenizer)
only: Split = train.only("stories")
first: torch.Tensor = train.document(0)
floor: float = entropy_floor(train)
batches = PackedBatches(train, batch_size=8, seq_len=128, seed=0)
inputs, targets = batches.batch(0)
print(inputs.shape, targets.shape)

cache = make_cache(config, batch_size=1, capacity=8)
assert isinstance(cache, KVCache | LatentCache)
probabilities: torch.Tensor = next_token_probs(logits[:, -1], 1.0, 1.0)
token: torch.Tensor = sample(logits[:, -1], 1.0, 1.0, torch.Generator())

plan = plan_dispatch(torch.zeros(4, 2, dtype=torch.int64), 3)
y: torch.Tensor = grouped_mm(torch.ones(8, 16), torch.ones(3, 8, 16), plan.counts)
y = fp8_grouped_linear(torch.ones(8, 16), torch.ones(3, 8, 16), plan.counts)
y = fp8_linear(torch.ones(8, 16), torch.ones(8, 16), recipe=Float8Recipe(kept="e5m6"))

try:
    trainer = Trainer(fresh, TrainConfig(steps=10), batches, out_dir="run")
    history: History = trainer.fit()
    valid: float = evaluate(fresh, batches, 2)
    newest: Path | None = latest_checkpoint("run")
except (CheckpointError, DataError, ModelFileError) as error:
    print(error)
