"""Probes: against attention as it is written, and many at once against one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stmae.model.probes import AttentiveProbe, LinearProbe, attentive_probes, linear_probes


def test_a_linear_probe_is_batch_norm_and_a_linear_layer() -> None:
    torch.manual_seed(0)
    features = 3 * torch.randn(40, 6) + 5
    probe = LinearProbe.on(features, 4)
    norm = torch.nn.BatchNorm1d(6, eps=1e-6, affine=False)
    torch.testing.assert_close(probe(features), probe.head(norm(features)))
    asked = torch.randn(7, 6)
    torch.testing.assert_close(F.linear(asked, *probe.folded()), probe(asked))
    several = [probe, LinearProbe.on(features, 4)]
    found = linear_probes(several, asked)
    assert found.shape == (2, 7, 4)
    torch.testing.assert_close(found, torch.stack([one(asked) for one in several]))
    assert not torch.allclose(found[0], found[1])


def test_features_that_never_vary_do_no_harm() -> None:
    features = torch.ones(5, 3)
    assert LinearProbe.on(features, 2)(features).isfinite().all()


def plain_attention(probe: AttentiveProbe, tokens: torch.Tensor) -> torch.Tensor:
    """The same with keys and values of every token."""
    x = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    key, value = (layer(x).unflatten(2, (probe.heads, -1)).transpose(1, 2) for layer in (probe.key, probe.value))
    query = probe.query[None, :, None].expand(len(tokens), -1, -1, -1)  # (B, heads, 1, d)
    found = F.scaled_dot_product_attention(query, key, value)[:, :, 0].flatten(1)
    return probe.head(probe.norm(probe.proj(found)))


def test_an_attentive_probe_is_attention_with_one_query() -> None:
    torch.manual_seed(1)
    probes = [AttentiveProbe(12, 3, 5).double() for _ in range(3)]
    with torch.no_grad():
        for probe in probes:
            for parameter in probe.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    tokens = torch.randn(4, 9, 12, dtype=torch.float64)
    expected = torch.stack([plain_attention(probe, tokens) for probe in probes])
    torch.testing.assert_close(attentive_probes(probes, tokens), expected)
    torch.testing.assert_close(probes[1](tokens), expected[1])
    turned = tokens.flip(1)  # an attentive probe does not know the order of tokens
    torch.testing.assert_close(attentive_probes(probes, turned), expected)


def test_gradients_reach_every_parameter_and_only_the_probe_s_own() -> None:
    torch.manual_seed(2)
    probes = [AttentiveProbe(8, 2, 3) for _ in range(2)]
    found = attentive_probes(probes, torch.randn(5, 6, 8))
    F.cross_entropy(found[0], torch.tensor([0, 1, 2, 0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in probes[0].parameters())
    assert all(p.grad is None or not p.grad.any() for p in probes[1].parameters())
