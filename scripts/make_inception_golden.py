"""Make the golden numbers of tests/features/test_inception.py with torch-fidelity, an independent Inception of 2015.

    pip install torch-fidelity torchvision
    python scripts/make_inception_golden.py

Weights and pictures come from formulas (tests/features/inception_2015.py), so that nothing is downloaded. Of each
picture some pixels after the resize, some of its 2048 features, of its logits without bias, and of what sFID looks at
are written as JSON. The last is what `mixed_6/conv` is in TensorFlow: Mixed_6d's 1x1 convolution, the first 7 channels.
The last digits depend on the machine and its number of threads; the test allows for that.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from features import inception_2015
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from nextscale.features import inception


def extractor() -> FeatureExtractorInceptionV3:
    """torch-fidelity's network with the formula's weights."""
    like = inception.published(inception.Inception()) | {"fc.bias": torch.empty(inception.CLASSES)}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(inception_2015.weights(like), file.name)
        features = ["2048", "logits_unbiased", "logits"]
        return FeatureExtractorInceptionV3("inception", features, feature_extractor_weights_path=file.name)


@torch.no_grad()
def numbers(network: FeatureExtractorInceptionV3, picture: Tensor) -> dict[str, list[float]]:
    """By what they are."""
    found: dict[str, Tensor] = {}
    hooks = [
        network.Conv2d_1a_3x3.register_forward_hook(lambda _, seen, out: found.update(pixels=seen[0])),
        network.Mixed_6d.branch1x1.register_forward_hook(lambda _, seen, out: found.update(spatial=out.clone())),
    ]
    found["features"], found["logits"], _ = network(picture)
    for hook in hooks:
        hook.remove()
    found["spatial"] = found["spatial"][:, :7].permute(0, 2, 3, 1)
    return {name: inception_2015.some(found[name]) for name in ("pixels", "spatial", "features", "logits")}


def main() -> None:
    network = extractor()
    golden = {f"{p.shape[2]}x{p.shape[3]}": numbers(network, p) for p in inception_2015.pictures()}
    text = ",\n".join(
        f' "{size}": {{\n' + ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in rows.items()) + "\n }"
        for size, rows in golden.items()
    )
    inception_2015.GOLDEN.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
