"""Laws of sharing a model among processes: it learns as copies do, and its checkpoints fit any number of processes."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor
from training.sharded import MUON, TinyStage, run

from nextscale.errors import InputError
from nextscale.files.checkpoint import read_tensors
from nextscale.training.optimization import WeightAverage, running_average

pytestmark = pytest.mark.slow  # starts torchrun


@pytest.fixture(scope="module")
def out(once) -> Path:
    """All runs in one start, since it takes seconds; "from one" has begun in one process."""
    return once("shares", start)


def start(directory: Path) -> None:
    run(TinyStage("copies"), directory / "from one", 3)
    run(TinyStage("copies", recipe=MUON), directory / "muon from one", 3)
    done = together(Path(__file__).with_name("sharded.py"), directory)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same run in one process."""
    return run(TinyStage("copies"), tmp_path_factory.mktemp("alone"))


def told(out: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(out / f"{name}-{rank}.pt", weights_only=True)


def vector(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


def assert_the_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To rounding: what was told of the last steps, and what came out, by how far the weights have come."""
    start = TinyStage("copies").model.state_dict()
    for name in ("losses", "norms", "validation"):
        count = len(other[name])
        assert other[name] == pytest.approx(one[name][-count:], rel=1e-4)
    for name in ("weights", "average"):
        ours, theirs = vector(one[name]), vector(other[name])
        assert (ours - theirs).norm() < 0.01 * (ours - vector(start)).norm()


@pytest.mark.parametrize("name", ["copies", "shares"])
def test_two_processes_learn_as_one_does(out: Path, alone: dict[str, Any], name: str) -> None:
    """The same loss curve and gradient norms at the same batch, in parts, clipped, decayed and averaged."""
    assert len(told(out, name)["losses"]) == 6
    assert_the_same_run(alone, told(out, name))


def test_all_processes_tell_the_same(out: Path) -> None:
    """Losses and norms; the whole weights come to the first alone."""
    first, second = told(out, "shares"), told(out, "shares", 1)
    assert (first["losses"], first["norms"]) == (second["losses"], second["norms"])
    assert not second["weights"]


def test_a_shared_run_continues_bit_for_bit(out: Path) -> None:
    """Cut short and gone on with by as many processes: weights, moments and average."""
    whole, cut = told(out, "shares"), told(out, "cut")
    assert cut["losses"] == whole["losses"][2:]
    for name in ("weights", "average", "optimizer"):
        assert cut[name].keys() == whole[name].keys()
        assert all(torch.equal(cut[name][part], whole[name][part]) for part in whole[name])


def test_two_processes_go_on_with_what_one_began(out: Path, alone: dict[str, Any]) -> None:
    """A checkpoint in one file is cut up."""
    assert len(told(out, "from one")["losses"]) == 4
    assert_the_same_run(alone, told(out, "from one"))


def test_one_process_goes_on_with_what_two_began(out: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """Shares are put together; what it saves itself is one file again."""
    begun = shutil.copytree(out / "to one", tmp_path / "run")
    assert sorted(path.name for path in begun.glob("state*")) == ["state-0000002", "state.pt"]
    gone_on = run(TinyStage("copies"), begun)
    assert len(gone_on["losses"]) == 4
    assert_the_same_run(alone, gone_on)
    assert [path.name for path in begun.glob("state*")] == ["state.pt"]
    assert "shares" not in torch.load(begun / "state.pt", weights_only=True)


def test_one_process_tells_of_damaged_shares(out: Path, tmp_path: Path) -> None:
    """A flipped bit, cut short, empty, of another kind, missing: one line that names the file."""
    shutil.copytree(out / "shares", tmp_path / "run")
    share = sorted((tmp_path / "run" / "state-0000006").iterdir())[0]
    content = share.read_bytes()
    size, flipped = len(content), content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]
    told = ["got checksum", *(f"got {len(wrong)} bytes where {size} were written" for wrong in (content[:500], b""))]
    for wrong, fault in zip((flipped, content[:500], b"", None), (*told, "found none"), strict=True):
        share.unlink() if wrong is None else share.write_bytes(wrong)
        with pytest.raises(InputError, match=f"{share}: expected a file of this run's checkpoint, {fault}") as caught:
            run(TinyStage("copies"), tmp_path / "run")
        assert "\n" not in str(caught.value)


def test_copies_go_on_with_shares(out: Path, alone: dict[str, Any]) -> None:
    """In as many processes."""
    assert_the_same_run(alone, told(out, "to copies"))


def test_a_shared_run_keeps_one_checkpoint_in_shares(out: Path) -> None:
    """Of each process a file; state.pt holds no weights, and the exported model all of them."""
    run_directory = out / "shares"
    assert [path.name for path in run_directory.glob("state-*")] == ["state-0000006"]
    stored = torch.load(run_directory / "state.pt", weights_only=True)
    assert stored["step"] == 6
    assert all(tensor.is_meta for tensor in stored["parts"]["model"].values())
    files = sorted((run_directory / "state-0000006").iterdir())
    stamps = [
        {"file": file.name, "bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())} for file in files
    ]
    assert stored["shares"] == {"directory": "state-0000006", "files": stamps}
    assert json.loads((run_directory / "shares.json").read_text()) == ["state-0000006"]
    sizes = [sum(tensor.numel() for tensor in read_tensors(file).values()) for file in files]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)
    exported, averaged = read_tensors(run_directory / "transformer.safetensors"), told(out, "shares")["average"]
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)


def test_shares_in_bf16_learn_as_copies_under_autocast(out: Path, alone: dict[str, Any]) -> None:
    """To the rounding of bfloat16, which is more than that of float32."""
    copies, shares = told(out, "lowered copies"), told(out, "lowered shares")
    assert shares["losses"] == pytest.approx(copies["losses"], rel=2e-3)
    assert shares["losses"] != alone["losses"]
    assert all(tensor.dtype == torch.float32 for tensor in shares["weights"].values())


def test_a_shared_modulation_is_shared_out_too(out: Path, tmp_path: Path) -> None:
    """Its tables are used outside their blocks."""
    whole = run(TinyStage("copies", shared_modulation=True), tmp_path)
    shares = told(out, "shared modulation")
    assert shares["losses"] == pytest.approx(whole["losses"], rel=1e-4)


# ---- Muon ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def muon_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with Muon in one process."""
    return run(TinyStage("copies", recipe=MUON), tmp_path_factory.mktemp("muon alone"))


@pytest.mark.parametrize(("name", "steps"), [("muon copies", 6), ("muon shares", 4), ("muon from one", 4)])
def test_muon_in_two_processes_learns_as_in_one(
    out: Path, alone: dict[str, Any], muon_alone: dict[str, Any], name: str, steps: int
) -> None:
    """Copies, shares, and shares of what one process began: whole matrices are orthogonalised, not those rows of them
    that a process happens to hold."""
    assert len(told(out, name)["losses"]) == steps
    assert_the_same_run(muon_alone, told(out, name))
    assert muon_alone["losses"][-1] != pytest.approx(alone["losses"][-1], rel=1e-2)


def test_muon_in_one_process_goes_on_with_what_two_began(out: Path, muon_alone: dict[str, Any], tmp_path: Path) -> None:
    """Momenta in shares are put together."""
    gone_on = run(TinyStage("copies", recipe=MUON), shutil.copytree(out / "muon to one", tmp_path / "run"))
    assert_the_same_run(muon_alone, gone_on)


def test_a_shared_run_with_muon_continues_bit_for_bit(out: Path) -> None:
    """Cut short and gone on with: weights, moments, momenta."""
    cut, whole = (sorted((out / name / "state-0000006").iterdir()) for name in ("muon shares", "muon whole"))
    for ours, theirs in zip(map(read_tensors, cut), map(read_tensors, whole), strict=True):
        assert ours.keys() == theirs.keys()
        assert "optimizer/muon/state/0/momentum_buffer" in theirs
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_average_of_weights_is_that_of_a_model() -> None:
    """With and without a model around it, bit for bit."""
    model = torch.nn.Linear(5, 3)
    ours, theirs = WeightAverage(model, 0.7), running_average(model, 0.7)
    for n in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 5, generator=torch.Generator().manual_seed(n)))
        ours.update()
        theirs.update_parameters(model)
        assert all(torch.equal(ours.whole()[name], w) for name, w in theirs.module.state_dict().items())
    other = WeightAverage(model, 0.7)
    other.load_state_dict(ours.state_dict())
    assert (other.steps, torch.equal(other.averages["weight"], ours.averages["weight"])) == (12, True)
