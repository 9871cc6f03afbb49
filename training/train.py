"""Trains the tiny demonstration reranker from scratch on a CPU, and exports it.

    python train.py --work WORK_FOLDER --export MODEL_FOLDER

WORK_FOLDER receives the corpus, the tokenizer and a checkpoint every few minutes. To resume an
interrupted run from its last checkpoint, repeat the command.
"""

import argparse
import math
import os
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# Spinning threads lose most of their time on a machine that other programs use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer

import corpus
import export
import tokenizer as texts
from model import FEATURES, ModelConfig, Student
from samples import NO_LABEL, Corpus, Sampler, Sizes, Vocabulary

SEED = 1
PEAK_RATE = 2e-3
LAST_RATE = 0.03  # minimum, as a share of the peak
WARM_UP = 50  # steps
FLAT_SHARE = 0.4  # share of the steps at the peak rate; a cosine decay follows
REPORT_EVERY = 25
SAVE_EVERY = 200


@dataclass
class Stage:
    """Steps with samples of one size. Batches have about the same number of tokens in all stages."""

    steps: int
    sizes: Sizes
    rows: int


# Short texts first: the model learns to find a word much faster in them than in long texts.
OPENING_STAGES = [
    Stage(150, Sizes(row=80, document=(8, 34), query=6), rows=56),
    Stage(100, Sizes(row=152, document=(15, 84), query=9), rows=30),
]
# Then all lengths alternate, so that the model does not forget any of them.
CYCLE = [
    Stage(10, Sizes(row=88, document=(5, 34), query=12), rows=50),
    Stage(20, Sizes(row=152, document=(30, 96), query=9), rows=30),
    Stage(30, Sizes(row=248, document=(76, 155), query=16), rows=18),
    Stage(10, Sizes(row=400, document=(140, 290), query=16), rows=11),
]


def stages(cycles):
    return OPENING_STAGES + CYCLE * cycles


def learning_rate(step, steps):
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = step / steps
    if progress < FLAT_SHARE:
        return PEAK_RATE
    fallen = (progress - FLAT_SHARE) / (1 - FLAT_SHARE)
    return PEAK_RATE * max(LAST_RATE, 0.5 * (1 + math.cos(math.pi * fallen)))


def make_optimizer(student):
    matrices, others = [], []
    for name, parameter in student.named_parameters():
        (matrices if parameter.dim() == 2 and "embed" not in name else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def batches(sampler_for, plan, first_step):
    """Returns a queue of the batches from `first_step` on, filled by a thread. Each step has its own seed."""
    ready = queue.Queue(8)

    def work():
        for step, stage in enumerate(plan):
            if step >= first_step:
                ready.put(sampler_for(step).batch(stage.rows, stage.sizes))

    threading.Thread(target=work, daemon=True).start()
    return ready


def accuracies(logits, labels, groups):
    hits = logits.argmax(-1) == labels
    result = []
    for name, tokens in groups.items():
        chosen = torch.isin(labels, tokens)
        result.append(f"{name} {hits[chosen].float().mean().item():.3f}")
    return ", ".join(result)


def features(vocabulary, teacher):
    """Returns the initial features of each token: `[vocabulary, len(FEATURES)]`, in the order of `FEATURES`."""
    table = torch.zeros(vocabulary.size, len(FEATURES))
    table[:, 0] = 1
    table[:, 1] = torch.tensor([teacher.rarity((token,)) for token in range(vocabulary.size)]) / 2
    table[vocabulary.marks, 2] = 1
    table[vocabulary.markers, 3] = 1
    table[vocabulary.query_follows, 4] = 1
    table[vocabulary.document_follows, 5] = 1
    table[vocabulary.answer_follows, 6] = 1
    return table  # "fresh", the last one, stays 0: the student computes it


def train(vocabulary, text, plan, checkpoint_path):
    torch.manual_seed(SEED)
    student = Student(ModelConfig(vocabulary.size), features(vocabulary, text.teacher()))
    optimizer = make_optimizer(student)
    first_step = 0
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path)
        student.load_state_dict(checkpoint["student"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        first_step = checkpoint["step"]
    print(f"{sum(weight.numel() for weight in student.parameters())} parameters, {len(plan)} steps")
    sampler = Sampler(text, SEED)

    def sampler_for(step):
        sampler.random.seed(f"{SEED}/{step}")
        return sampler

    ready = batches(sampler_for, plan, first_step)
    forward = torch.compile(student, dynamic=False)
    rotations = {}
    # On a processor without BF16 instructions, BF16 is many times slower than F32.
    precision = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    groups = {
        "marks": torch.tensor(vocabulary.marks),
        "totals": torch.tensor(vocabulary.totals),
        "digits": torch.tensor(vocabulary.digits),
        "words": torch.tensor(vocabulary.first_pieces),
        "their endings": torch.tensor(vocabulary.later_pieces),
    }
    started, tokens = time.time(), 0
    for step in range(first_step, len(plan)):
        ids, positions, labels, weights = (torch.from_numpy(array) for array in ready.get())
        row = ids.shape[1]
        if row not in rotations:
            rotations[row] = [part.to(precision) for part in student.rotations(row)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(plan))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            logits = forward(ids, positions, *rotations[row])
        known = labels != NO_LABEL
        logits, labels, weights = logits[known].float(), labels[known], weights[known]
        losses = functional.cross_entropy(logits, labels, reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.time() - started
            print(
                f"{seconds:5.0f} s, step {step + 1}, rows of {row}: loss {loss.item():.4f}, "
                f"{accuracies(logits, labels, groups)}, "
                f"{tokens / seconds:.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == len(plan):
            save(student, optimizer, step + 1, checkpoint_path)
    return student


def save(student, optimizer, step, path):
    """Writes the checkpoint to a new file, then replaces the previous checkpoint with it."""
    new = path.with_suffix(".new")
    state = {
        "step": step,
        "config": student.config.as_dict(),
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, new)
    new.replace(path)


def load_tokenizer(work, descriptions, glosses):
    path = work / "tokenizer.json"
    if not path.exists():
        # Glosses count twice, because they contain the general vocabulary.
        texts.train(" ".join(pair) for pair in descriptions + glosses + glosses).save(str(path))
    return Tokenizer.from_file(str(path))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--export", type=Path, required=True)
    arguments.add_argument("--cycles", type=int, default=40, help="repetitions of the last stages")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    descriptions, glosses = corpus.load(options.work)
    tokenizer = load_tokenizer(options.work, descriptions, glosses)
    vocabulary = Vocabulary(tokenizer)
    text = Corpus(vocabulary, descriptions, glosses)
    plan = [stage for stage in stages(options.cycles) for _ in range(stage.steps)]
    student = train(vocabulary, text, plan, options.work / "checkpoint.pt")
    export.export(student, tokenizer, options.export)


if __name__ == "__main__":
    main()
