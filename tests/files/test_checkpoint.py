"""Laws of model files: whole or not there, exact, and one line about whatever is wrong with them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale import InputError
from nextscale.files import checkpoint

FORMATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """One of each floating-point format, an empty one, and one that is a transposed view."""
    generator = torch.Generator().manual_seed(0)
    made = {str(dtype): torch.randn(3, 5, generator=generator).to(dtype) for dtype in FORMATS}
    special = torch.tensor([float("nan"), float("inf"), -0.0, 1e-42])
    return {**made, "view": torch.randn(4, 6, generator=generator).T, "special": special, "empty": torch.zeros(0, 3)}


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_tensors_come_back_bit_for_bit(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Names, shapes, formats and bits; a missing parent directory is made."""
    path = tmp_path / "a" / "b" / "weights.safetensors"
    checkpoint.write_tensors(path, tensors)
    read = checkpoint.read_tensors(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(read[name]) == bits(tensor)


def test_json_comes_back_equal(tmp_path: Path) -> None:
    """Text in any script, indented for people."""
    values = {"classes": ["猫", "café"], "scales": [1, [2, 3]], "none": None}
    checkpoint.write_json(tmp_path / "config.json", values)
    assert checkpoint.read_json(tmp_path / "config.json") == values
    assert "猫" in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_interrupted_save_leaves_the_old_file(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    """Half of the new one had been written; nothing of it stays."""
    path = tmp_path / "weights.safetensors"
    checkpoint.write_tensors(path, tensors)
    before = path.read_bytes()

    def write_half(tensors: dict[str, Tensor], path: Path, metadata: object) -> None:
        Path(path).write_bytes(safetensors.torch.save(tensors)[:100])
        raise interruption

    monkeypatch.setattr(safetensors.torch, "save_file", write_half)
    with pytest.raises(interruption):
        checkpoint.write_tensors(path, {"other": torch.zeros(100)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Its parent is a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write .*config\.json: .*$"):
        checkpoint.write_json(tmp_path / "file" / "config.json", {})


def test_read_tensors_are_not_the_file(tmp_path: Path) -> None:
    """Written to, they leave the file alone; written over, the file leaves them alone."""
    path = tmp_path / "weights.safetensors"
    checkpoint.write_tensors(path, {"a": torch.ones(1000)})
    first, second = checkpoint.read_tensors(path), checkpoint.read_tensors(path)
    first["a"].zero_()
    assert torch.equal(checkpoint.read_tensors(path)["a"], torch.ones(1000))
    checkpoint.write_tensors(path, {"a": torch.full((1000,), 2.0)})
    assert torch.equal(second["a"], torch.ones(1000))
    assert torch.equal(checkpoint.read_tensors(path)["a"], torch.full((1000,), 2.0))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_truncated_file_is_one_line(tensors: dict[str, Tensor], tmp_path: Path, share: float) -> None:
    """Cut anywhere: in the length, the header, or the weights; a whole header tells how much is missing."""
    path = tmp_path / "weights.safetensors"
    checkpoint.write_tensors(path, {**tensors, "large": torch.zeros(5000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError) as caught:
        checkpoint.read_tensors(path)
    kind = "a damaged file" if share else "an empty file"
    assert f"weights.safetensors: expected safetensors, got {kind}" in str(caught.value)
    assert (f", cut short at {int(share * len(whole)):,} of {len(whole):,} bytes" in str(caught.value)) is (
        share >= 0.1
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a pickle in a zip", bytes(range(256)) * 8, b"{}" * 500], ids=len)
def test_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    """It is not looked at any further, least of all unpickled."""
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="expected safetensors, got a damaged file"):
        checkpoint.read_tensors(tmp_path / "weights.safetensors")


MISTAKEN = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "a web page": b"\xef\xbb\xbf \n<!DOCTYPE html><html><body>404</body></html>",
    "an empty file": b"",
}


@pytest.mark.parametrize("kind", MISTAKEN)
@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_what_is_often_there_instead_of_a_file_is_named(tmp_path: Path, kind: str, name: str) -> None:
    """What a checkout without Git LFS leaves, what a failed download leaves, and nothing at all."""
    (tmp_path / name).write_bytes(MISTAKEN[kind])
    with pytest.raises(InputError, match=rf"{name}: expected (safetensors|JSON), got {kind}") as caught:
        checkpoint.read_tensors(tmp_path / name) if "safe" in name else checkpoint.read_config(tmp_path, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", [1 << 62, (1 << 64) - 1, 1 << 30, 8], ids=hex)
def test_a_header_of_any_length_is_no_larger_than_its_file(tmp_path: Path, header: int) -> None:
    """What a file says of its length is not believed."""
    (tmp_path / "weights.safetensors").write_bytes(header.to_bytes(8, "little") + b'{"a":[' + b" " * 100)
    with pytest.raises(InputError, match="expected safetensors, got a damaged file"):
        checkpoint.read_tensors(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000], ids=len)
def test_brackets_inside_each_other_are_one_line(tmp_path: Path, text: str) -> None:
    """However many; nothing recurses without end."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="expected JSON, got brackets inside each other by the thousand"):
        checkpoint.read_config(tmp_path, ["tokenizer"])


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As some editors write it."""
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert checkpoint.read_json(tmp_path / "config.json") == {"a": 1}


def test_missing_files_are_named(tmp_path: Path) -> None:
    """The weights, the config, the directory itself."""
    with pytest.raises(InputError, match=r"^expected a file .*weights.safetensors, found none$"):
        checkpoint.read_tensors(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"^expected a file .*config.json, found none$"):
        checkpoint.read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"^expected a model directory with config.json, got .*, which has none$"):
        checkpoint.read_config(tmp_path, ["tokenizer"])
    with pytest.raises(InputError, match=r"^expected a model directory, found none at .*nowhere$"):
        checkpoint.read_config(tmp_path / "nowhere", ["tokenizer"])


@pytest.mark.parametrize("text", ["", "{", '{"tokenizer": }', "\xff\xfe", "[1, 2"], ids=repr)
def test_text_that_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    """With where it stops being JSON."""
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config.json: expected JSON, got .*$") as caught:
        checkpoint.read_config(tmp_path, ["tokenizer"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{}, [], "tokenizer", None, {"transformer": {}}], ids=str)
def test_config_without_its_section_says_which(tmp_path: Path, values: Any) -> None:
    """The first that is missing."""
    checkpoint.write_json(tmp_path / "config.json", values)
    with pytest.raises(InputError, match=r"expected a model with a tokenizer, its config.json has none$"):
        checkpoint.read_config(tmp_path, ["tokenizer", "transformer"])


# -- weights into models -----------------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "1.weight": (2, 3), "1.bias": (2,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_assigned_weights_are_exact_and_trainable(weights: dict[str, Tensor]) -> None:
    """On a model that had no memory before."""
    model = two_layers()
    checkpoint.assign(model, lambda: weights)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.requires_grad
    assert model(torch.rand(2, 4)).shape == (2, 2)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 28])
def test_assigned_weights_take_the_format_of_the_model(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Rounded once, as `Tensor.to` rounds, however often the file is mapped anew in between."""
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    model = two_layers()
    model[0].to(torch.bfloat16)
    checkpoint.assign(model, lambda: dict(weights))
    for name, parameter in model.named_parameters():
        expected = weights[name].to(torch.bfloat16 if name.startswith("0.") else torch.float32)
        assert parameter.dtype == expected.dtype
        assert torch.equal(parameter, expected)


def test_copied_weights_share_no_memory(weights: dict[str, Tensor]) -> None:
    """`copy=True` for tensors that somebody else holds; otherwise they are taken as they are."""
    for copy in (True, False):
        model = two_layers()
        checkpoint.assign(model, lambda: weights, copy=copy)
        for name, parameter in model.named_parameters():
            assert (parameter.data_ptr() == weights[name].data_ptr()) is not copy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copy", [True, False])
def test_weights_that_are_not_finite_are_named(
    weights: dict[str, Tensor], value: float, dtype: torch.dtype, copy: bool
) -> None:
    """Converted, copied or kept as they are; the first of them."""
    weights["0.bias"][1] = weights["1.bias"][0] = value
    with pytest.raises(InputError, match=r"weights of the Sequential: expected finite numbers, got 0.bias with values"):
        checkpoint.assign(two_layers().to(dtype), lambda: weights, copy=copy)


def test_a_config_that_the_weights_cannot_hold_is_told_before_a_model_is_made(tmp_path: Path) -> None:
    """By the number of weights; what is nearly right is told tensor by tensor later on."""
    path = tmp_path / "weights.safetensors"
    checkpoint.write_tensors(path, {"a": torch.zeros(30), "b": torch.zeros(2, 10)})
    checkpoint.check_room(path, parameters=800, blocks=2)
    for parameters, blocks, told in [
        (10**6, 2, "1,000,000 parameters in 2 blocks"),
        (50, 3, "50 parameters in 3 blocks"),
    ]:
        with pytest.raises(InputError, match=f"expected {told}, as config.json says, got 50 in 2 tensors$"):
            checkpoint.check_room(path, parameters=parameters, blocks=blocks)


MISFITS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    r"1\.bias is missing": lambda w: w.pop("1.bias"),
    r"2\.bias is not expected": lambda w: w.update({"2.bias": torch.zeros(2)}),
    r"0\.weight should be \(3, 4\), is \(4, 3\)": lambda w: w.update({"0.weight": torch.zeros(4, 3)}),
    r"0\.bias should be floating point, is torch.int64": lambda w: w.update({"0.bias": torch.zeros(3).long()}),
}


@pytest.mark.parametrize("complaint", MISFITS)
def test_weights_that_do_not_fit_are_named(weights: dict[str, Tensor], complaint: str) -> None:
    """And the model stays as it was, on the meta device."""
    MISFITS[complaint](weights)
    model = two_layers()
    with pytest.raises(InputError, match=rf"^weights do not fit the Sequential: {complaint}$"):
        checkpoint.assign(model, lambda: weights)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_many_misfits_are_still_one_line(weights: dict[str, Tensor]) -> None:
    """Four of them and how many more there are."""
    strangers = {f"x.{i}": torch.zeros(1) for i in range(100)}
    with pytest.raises(InputError, match=r"(x\.\d+ is not expected; ){3}x\.\d+ is not expected and 96 more$"):
        checkpoint.assign(two_layers(), lambda: {**weights, **strangers})


def test_a_fingerprint_follows_names_shapes_and_values_and_not_the_format() -> None:
    """Zeros of (2, 3) and of (3, 2) have the same bytes."""
    zeros = {"a": torch.zeros(2, 3)}
    others = [
        {"a": torch.zeros(3, 2)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3).index_fill_(0, torch.tensor([1]), 1e-9)},
    ]
    seen = {checkpoint.fingerprint(tensors) for tensors in (zeros, *others)}
    assert len(seen) == 4
    assert checkpoint.fingerprint({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}) == checkpoint.fingerprint(zeros)


def test_a_saved_model_stays_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before the last file is written, no file of the model before is replaced and nothing is left over."""
    files = {"a.safetensors": {"a": torch.zeros(1)}, "b.safetensors": {"b": torch.zeros(1)}}
    checkpoint.save(tmp_path, {"tokenizer": {}}, files)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = safetensors.torch.save_file

    def fail_on_second(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if path.name.startswith("b."):
            raise KeyboardInterrupt
        real(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", fail_on_second)
    newer = {name: {key: tensor + 1 for key, tensor in tensors.items()} for name, tensors in files.items()}
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"tokenizer": {"newer": True}}, newer)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(safetensors.torch, "save_file", real)
    checkpoint.save(tmp_path, {"tokenizer": {"newer": True}}, newer)
    assert json.loads((tmp_path / "config.json").read_text())["tokenizer"] == {"newer": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "config.json"]


def test_weights_that_may_not_be_read_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors says that there is no such file."""
    checkpoint.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"^cannot read .*a\.safetensors: Permission denied$"):
        checkpoint.read_tensors(tmp_path / "a.safetensors")


# ---- checksums -------------------------------------------------------------------------------------------------------


def sums_of(content: bytes) -> str:
    """The rule in plain Python: blocks of 4,096 words are added up, what is behind them stays."""
    words = [int.from_bytes(content[at : at + 8], "little", signed=True) for at in range(0, len(content) // 8 * 8, 8)]
    blocks = [sum(words[at : at + 4096]) % 2**64 for at in range(0, len(words) // 4096 * 4096, 4096)]
    sums = b"".join(block.to_bytes(8, "little") for block in blocks)
    return hashlib.sha256(sums + content[len(blocks) * 32768 :]).hexdigest()[:16]


@pytest.mark.parametrize("dtype", [*FORMATS, torch.int64, torch.bool])
@pytest.mark.parametrize("count", [0, 1, 7, 4096, 40_001])
def test_a_checksum_is_of_the_bytes(dtype: torch.dtype, count: int) -> None:
    """Whatever their format, number, place in memory or strides."""
    tensor = (torch.arange(count) * 2654435761 % 1000 - 500).to(dtype)
    expected = sums_of(bits(tensor))
    assert checkpoint.checksum(tensor) == expected
    assert checkpoint.checksum(torch.stack([tensor, tensor], dim=-1)[..., 1]) == expected
    shifted = torch.cat([torch.zeros(1, dtype=dtype), tensor])[1:]
    assert checkpoint.checksum(shifted) == expected


def test_a_checksum_finds_accidents() -> None:
    """A bit anywhere, a block of zeros, two blocks that changed places, bytes cut off at the end."""
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(256, (3 * checkpoint.BLOCK + 5,), generator=generator, dtype=torch.uint8)
    sums = {checkpoint.checksum(tensor)}
    for place in (0, 9, checkpoint.BLOCK, len(tensor) - 1):
        for bit in (0, 7):
            changed = tensor.clone()
            changed[place] ^= 1 << bit
            sums.add(checkpoint.checksum(changed))
    zeros = tensor.clone()
    zeros[4096:8192] = 0
    first, second, rest = tensor.split([checkpoint.BLOCK, checkpoint.BLOCK, len(tensor) - 2 * checkpoint.BLOCK])
    sums |= {checkpoint.checksum(one) for one in (zeros, torch.cat([second, first, rest]), tensor[:-1])}
    assert len(sums) == 1 + 8 + 3
