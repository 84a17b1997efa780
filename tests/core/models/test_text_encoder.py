from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpce_cli.core.models.text_encoder import _STAGES, ResidualBlock, TextEncoder, build_text_encoder, initialise
from dpce_cli.core.presets import build_preset
from dpce_cli.core.seeding import generator_for
from tests.oracles import text_cnn

WORDS = 30


def small_encoder(blocks: tuple[int, ...] = (2, 2, 1, 1), width: float = 0.02) -> TextEncoder:
    """A float64 encoder with random weights, batch norms included, in eval mode."""
    encoder = TextEncoder(vocabulary_size=WORDS, word_dim=7, blocks=blocks, width=width, embedding_dim=9).double()
    encoder.reset_parameters(generator_for("text"))
    generator = generator_for("batch norms")
    with torch.no_grad():
        encoder.word_bias.normal_(generator=generator)
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return encoder.eval()


def word_layer_output(encoder: TextEncoder, token_ids: Tensor) -> Tensor:
    """The input of the first batch norm: (batch, word_dim, positions)."""
    seen: list[Tensor] = []
    handle = encoder.word_bn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(token_ids)
    handle.remove()
    return seen[0]


def random_captions(count: int, positions: int) -> Tensor:
    """Ids, of which some are blank."""
    drawn = torch.randint(0, WORDS + 1, (count, positions), generator=generator_for("captions", count, positions))
    drawn[:, -2:] = 0
    return drawn


def numbers(encoder: TextEncoder) -> text_cnn.Weights:
    return {name: value.numpy() for name, value in encoder.state_dict().items()}


def test_the_word_layer_is_a_one_hot_convolution_with_a_bias() -> None:
    encoder, token_ids = small_encoder(), random_captions(4, 12)
    output = word_layer_output(encoder, token_ids).detach().numpy()
    weights = numbers(encoder)
    filters = weights["words.weight"][1:].T[:, :, None]
    for caption, found in zip(token_ids.tolist(), output, strict=True):
        expected = text_cnn.convolution(text_cnn.one_hot(caption, WORDS), filters) + weights["word_bias"][:, None]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_word_layer_are_those_of_the_one_hot_convolution() -> None:
    encoder, token_ids = small_encoder(), random_captions(4, 12)
    upstream = torch.randn(4, 7, 12, generator=generator_for("upstream"), dtype=torch.float64)
    (word_layer_output(encoder, token_ids) * upstream).sum().backward()

    columns = F.one_hot(token_ids, WORDS + 1)[:, :, 1:].double().transpose(1, 2)
    filters = encoder.words.weight[1:].detach().T[:, :, None].clone().requires_grad_()
    bias = encoder.word_bias.detach().clone().requires_grad_()
    (F.conv1d(columns, filters, bias) * upstream).sum().backward()

    assert encoder.words.weight.grad is not None
    assert filters.grad is not None
    assert filters.grad.abs().max() > 0
    torch.testing.assert_close(encoder.words.weight.grad[1:].T, filters.grad[:, :, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder.word_bias.grad, bias.grad, rtol=1e-12, atol=1e-12)
    assert not encoder.words.weight.grad[0].any()


def test_a_blank_position_is_the_bias_alone() -> None:
    encoder = small_encoder()
    output = word_layer_output(encoder, torch.tensor([[3, 0, 0]]))
    assert output[0, :, 1].equal(encoder.word_bias)
    assert output[0, :, 2].equal(encoder.word_bias)
    assert not output[0, :, 0].equal(encoder.word_bias)


def test_the_blank_stays_a_zero_vector_under_training() -> None:
    encoder = small_encoder().train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    before = encoder.words.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        encoder(random_captions(4, 12)).square().sum().backward()
        optimizer.step()
    assert not encoder.words.weight[0].any()
    assert not encoder.words.weight.equal(before)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_the_kernel_2_convolution_sees_one_zero_on_the_left_only(stride: int, length: int) -> None:
    block = ResidualBlock(5, 3, 5, stride, project=True).double().eval()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    block.bn1.register_forward_hook(lambda *seen: inputs.append(seen[2]))
    block.conv2.register_forward_hook(lambda *seen: outputs.append(seen[2]))
    x = torch.randn(2, 5, length, generator=generator_for(stride, length), dtype=torch.float64)
    block(x)
    for before, after in zip(inputs[0].relu(), outputs[0], strict=True):
        weight = block.conv2.weight.detach().numpy()
        expected = text_cnn.convolution(before.detach().numpy(), weight, stride=stride, zeros_left=1)
        assert after.shape[1] == math.ceil(length / stride)
        np.testing.assert_allclose(after.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("project", [True, False])
def test_a_word_changes_only_its_own_and_the_next_output_of_a_stride_1_block(project: bool) -> None:
    block = ResidualBlock(6, 4, 6, 1, project).double().eval()
    initialise(block, generator_for("block"))
    x = torch.randn(1, 6, 10, generator=generator_for("x"), dtype=torch.float64)
    for word in range(10):
        changed = x.clone()
        changed[:, :, word] += 1
        differs = (block(x) != block(changed)).any(1)[0].nonzero()[:, 0].tolist()
        assert word in differs
        assert set(differs) <= {word, word + 1}


def test_changing_a_word_never_changes_outputs_to_its_left_within_stage_1() -> None:
    encoder = small_encoder(blocks=(3,))
    token_ids = random_captions(1, 12)
    before = encoder.feature_map(token_ids)
    for word in range(12):
        changed = token_ids.clone()
        changed[0, word] = changed[0, word] % WORDS + 1
        assert encoder.feature_map(changed)[:, :, :word].equal(before[:, :, :word])


@pytest.mark.parametrize(("words", "expected"), [(32, [32, 16, 8, 8]), (56, [56, 28, 14, 14]), (1, [1, 1, 1, 1])])
def test_lengths_after_each_stage(words: int, expected: list[int]) -> None:
    blocks = (3, 4, 6, 1)
    encoder = TextEncoder(vocabulary_size=WORDS, word_dim=7, blocks=blocks, width=0.01, embedding_dim=9).eval()
    lengths: list[int] = []
    for last in (2, 6, 12, 13):
        encoder.blocks[last].register_forward_hook(lambda *seen: lengths.append(seen[2].shape[2]))
    assert encoder(random_captions(2, words)).shape == (2, 9)
    assert lengths == expected


def published_encoder(blocks: tuple[int, ...]) -> TextEncoder:
    model = replace(build_preset("paper-flickr30k").model, text_blocks=blocks)
    with torch.device("meta"):
        return build_text_encoder(model, vocabulary_size=20_074, word_dim=300)


def block_size(channels: int, middle: int, out: int, project: bool) -> int:
    """The number of weights of kernels 1, 2 and 1, of the shortcut, and of their batch norms (two per channel)."""
    size = channels * middle + 2 * middle * middle + middle * out + 2 * (middle + middle + out)
    return size + project * (channels * out + 2 * out)


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    words = 20_075 * 300 + 300 + 2 * 300  # the blank has a row, which stays zero
    stage1 = block_size(300, 128, 256, True) + 2 * block_size(256, 64, 256, False)
    stage2 = block_size(256, 512, 512, True) + 3 * block_size(512, 128, 512, False)
    stage3 = block_size(512, 1024, 1024, True) + 5 * block_size(1024, 256, 1024, False)
    stage4 = block_size(1024, 2048, 2048, True)
    head = 2048 * 2048 + 2 * 2048
    sizes = [parameter.numel() for parameter in published_encoder((3, 4, 6, 1)).parameters()]
    assert sum(sizes) == words + stage1 + stage2 + stage3 + stage4 + head


def test_the_network_like_resnet_152_deepens_stages_2_and_3() -> None:
    deep, usual = published_encoder((3, 8, 36, 1)), published_encoder((3, 4, 6, 1))
    assert (len(deep.blocks), len(usual.blocks)) == (48, 14)
    added = sum(p.numel() for p in deep.parameters()) - sum(p.numel() for p in usual.parameters())
    assert added == 4 * block_size(512, 128, 512, False) + 30 * block_size(1024, 256, 1024, False)
    small = TextEncoder(vocabulary_size=WORDS, word_dim=7, blocks=(3, 8, 36, 1), width=0.01, embedding_dim=9).eval()
    assert small(random_captions(2, 32)).isfinite().all()


def test_the_width_scales_the_blocks_and_nothing_else() -> None:
    narrow = TextEncoder(vocabulary_size=WORDS, word_dim=300, blocks=(2, 1, 1, 1), width=0.25, embedding_dim=64)
    shapes = {name: tuple(parameter.shape) for name, parameter in narrow.named_parameters()}
    assert shapes["words.weight"] == (WORDS + 1, 300)
    assert shapes["blocks.0.conv1.weight"] == (32, 300, 1)
    assert shapes["blocks.0.conv2.weight"] == (32, 32, 2)
    assert shapes["blocks.0.conv3.weight"] == (64, 32, 1)
    assert shapes["blocks.0.shortcut.0.weight"] == (64, 300, 1)
    assert shapes["blocks.1.conv1.weight"] == (16, 64, 1)
    assert shapes["blocks.4.conv3.weight"] == (512, 512, 1)
    assert shapes["linear.weight"] == (64, 512)
    assert "blocks.1.shortcut.0.weight" not in shapes


def test_fewer_stages_give_a_shallower_network() -> None:
    for stages in range(1, len(_STAGES) + 1):
        encoder = small_encoder(blocks=(1,) * stages)
        assert len(encoder.blocks) == stages
        assert encoder(random_captions(2, 8)).shape == (2, 9)


@pytest.mark.parametrize("blocks", [(2, 2, 1, 1), (1, 1), (1, 2, 3)])
@pytest.mark.parametrize("positions", [11, 16])
def test_the_whole_network_equals_the_slow_one(blocks: tuple[int, ...], positions: int) -> None:
    encoder, token_ids = small_encoder(blocks), random_captions(3, positions)
    expected = [text_cnn.text_embedding(caption, numbers(encoder), blocks=blocks) for caption in token_ids.tolist()]
    np.testing.assert_allclose(encoder(token_ids).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    in_float32 = encoder.float()(token_ids).detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(in_float32 / scale, expected / scale, rtol=0, atol=1e-5)


def test_an_empty_caption_and_no_captions_are_encoded() -> None:
    encoder = small_encoder()
    assert encoder(torch.zeros(2, 8, dtype=torch.int32)).isfinite().all()
    assert encoder(torch.zeros(0, 8, dtype=torch.int64)).shape == (0, 9)


def test_weights_are_drawn_with_the_documented_deviations() -> None:
    encoder = TextEncoder(vocabulary_size=2000, word_dim=100, blocks=(1, 1), width=1, embedding_dim=200)
    encoder.requires_grad_(False).reset_parameters(generator_for("init"))
    projection = encoder.blocks[1]
    assert isinstance(projection, ResidualBlock)
    deviations = {
        projection.conv1.weight: math.sqrt(2 / 512),
        projection.conv2.weight: math.sqrt(2 / (2 * 512)),
        projection.conv3.weight: math.sqrt(2 / 512),
        encoder.linear.weight: math.sqrt(2 / 200),
        encoder.words.weight[1:]: 1 / math.sqrt(100),
    }
    for weight, deviation in deviations.items():
        assert float(weight.std()) == pytest.approx(deviation, rel=0.02)
        assert abs(float(weight.mean())) < 0.02 * deviation
    assert not encoder.words.weight[0].any()


def test_initialising_sets_biases_to_zero_and_depends_on_the_generator_alone() -> None:
    linear = nn.Linear(3, 4)
    layer = nn.Sequential(linear, nn.Conv1d(3, 4, 2))
    initialise(layer, generator_for(1))
    first = [parameter.detach().clone() for parameter in layer.parameters()]
    assert not first[1].any()
    assert not first[3].any()
    initialise(layer, generator_for(1))
    assert all(old.equal(new) for old, new in zip(first, layer.parameters(), strict=True))
    initialise(layer, generator_for(2))
    assert not first[0].equal(linear.weight)
