"""The trainable model: the same mixture of experts that the engine runs, in dense form.

Rules: all experts are computed and the router's gate is the mask, which at this size is faster than
gathering; matrices are kept fused and are taken apart only on export. Parameters are float32, the
matrix products bfloat16 where the caller opens an autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from novamesh_engine.recipe.preset import Preset

ROPE_THETA = 10_000.0
NORM_EPS = 1e-5


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position, halves convention; x [batch, heads, tokens, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def rope_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [length, head_dim], float32."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float64), ROPE_THETA**-steps)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).normal_(0.0, 0.02))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain causal attention [batch, heads, tokens, head_dim].

    Written out: at this size two products and a fused softmax take a third of the time that the
    flash kernel for CPUs takes, backward included.
    """
    tokens = q.shape[2]
    ahead = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5
    shares = torch.softmax(scores.masked_fill(ahead, float("-inf")), dim=-1)
    return shares.to(v.dtype) @ v


def route(x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
    """Gate [tokens, experts] with two experts' shares that sum to one, and all probabilities."""
    probabilities = torch.softmax(functional.linear(x, router), dim=-1)
    best = probabilities.amax(-1, keepdim=True)
    second = probabilities.masked_fill(probabilities >= best, 0.0).amax(-1, keepdim=True)
    gate = probabilities.masked_fill(probabilities < second, 0.0)
    return gate / gate.sum(-1, keepdim=True), probabilities


class Layer(nn.Module):
    """Attention and mixture of experts, each behind a norm and added to the stream."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        wide = preset.experts * preset.expert_size
        self.preset = preset
        self.input_norm = nn.Parameter(torch.ones(preset.hidden))
        self.qkv = _matrix(3 * preset.hidden, preset.hidden)
        self.out = _matrix(preset.hidden, preset.hidden)
        self.expert_norm = nn.Parameter(torch.ones(preset.hidden))
        self.router = _matrix(preset.experts, preset.hidden)
        self.gate = _matrix(wide, preset.hidden)
        self.up = _matrix(wide, preset.hidden)
        self.down = _matrix(preset.hidden, wide)

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, hidden = x.shape
        heads = self.preset.heads
        qkv = functional.linear(rms_norm(x, self.input_norm), self.qkv)
        q, k, v = qkv.view(batch, tokens, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        mixed = attend_causally(q, k, v)
        return functional.linear(mixed.transpose(1, 2).reshape(batch, tokens, hidden), self.out)

    def _experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = rms_norm(x, self.expert_norm)
        with torch.autocast("cpu", enabled=False):
            gate, probabilities = route(normed, self.router)
        used = (gate > 0).float().mean((0, 1)) / self.preset.experts_per_token
        balance = self.preset.experts * (used * probabilities.mean((0, 1))).sum()
        wide = functional.silu(functional.linear(normed, self.gate)) * functional.linear(
            normed, self.up
        )
        shares = gate.repeat_interleave(self.preset.expert_size, dim=-1).to(wide.dtype)
        return functional.linear(wide * shares, self.down), balance

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after this layer and its balance loss; x [batch, tokens, hidden]."""
        x = x + self._attend(x, cos, sin)
        change, balance = self._experts(x)
        return x + change, balance


class Network(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, vocab]; the head is the embedding."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.embedding = _matrix(preset.vocab, preset.hidden)
        self.layers = nn.ModuleList(Layer(preset) for _ in range(preset.layers))
        self.norm = nn.Parameter(torch.ones(preset.hidden))
        cos, sin = rope_tables(preset.max_context, preset.hidden // preset.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the mean balance loss of the layers."""
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        x = functional.embedding(ids, self.embedding)
        balances = []
        for layer in self.layers:
            x, balance = layer(x, cos[: ids.shape[1]], sin[: ids.shape[1]])
            balances.append(balance)
        logits = functional.linear(rms_norm(x, self.norm), self.embedding)
        return logits, torch.stack(balances).mean()


def training_loss(network: Network, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy over the weighted tokens, with the balance loss; ids [batch, tokens+1]."""
    logits, balance = network(ids[:, :-1])
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    counts = weights[:, 1:].flatten()
    answers: Tensor = (losses * counts).sum() / counts.sum()
    loss: Tensor = answers + network.preset.balance * balance
    return loss
