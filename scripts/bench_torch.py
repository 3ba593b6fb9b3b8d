"""The peer of `bench_step.py`: the same small GPT in PyTorch, as one would write it there. Run by that script.

`python scripts/bench_torch.py eager|compile float32|bfloat16 LAYERS WIDTH HEADS LENGTH BATCH VOCAB`: for every number
read from standard input so many steps are taken and their wall and CPU seconds a step printed; 0 measures matmuls.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

MATMULS = 10


def rotate(x_BHLK, cos_LK, sin_LK):
    left, right = x_BHLK.chunk(2, -1)
    return torch.cat([left * cos_LK - right * sin_LK, right * cos_LK + left * sin_LK], -1)


class Block(nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.heads, hidden = heads, -(-8 * width // 192) * 64
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        head_dim = width // heads
        angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x):
        B, L, D = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (rotate(part, self.cos, self.sin).to(v.dtype) for part in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(B, L, D))
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class GPT(nn.Module):
    def __init__(self, layers, width, heads, length, vocab):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, length) for _ in range(layers))
        self.norm = nn.RMSNorm(width, 1e-6)

    def forward(self, ids, targets):
        x = self.embedding(ids) * self.embedding.embedding_dim**0.5
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main():
    mode, dtype = sys.argv[1], getattr(torch, sys.argv[2])
    layers, width, heads, length, batch, vocab = map(int, sys.argv[3:])
    torch.manual_seed(0)
    model = GPT(layers, width, heads, length, vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if mode == "compile" else model
    ids = torch.randint(vocab, (batch, length + 1))

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    x, w = torch.randn(batch * length, width, dtype=dtype), torch.randn(width, 4 * width, dtype=dtype)
    for _ in range(2):
        step()
        x @ w
    print("ready", flush=True)
    for line in sys.stdin:
        steps = int(line)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps or MATMULS):
            step() if steps else x @ w
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(wall / (steps or MATMULS), cpu / (steps or MATMULS), flush=True)


main()
