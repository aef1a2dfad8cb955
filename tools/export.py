"""A trained network as an ONNX file: any number of images N×3×32×32 from 0 to 1 in, logits N×classes out.

    python -m tools.export runs/NAME [--onnx FILE] [name=value ...]

The normalisation is inside. The file is checked against torch with onnxruntime on the run's own test images.
"""

import signal
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python tools/export.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch
from torch import Tensor, nn

import data
import model
from harness import checkpoint
from harness import settings as configuration
from harness.errors import Parser, UserError, one_line_errors

NEEDED = "onnx onnxscript onnxruntime"


def main(argv: list[str] | None = None) -> int:
    """Write the file, print how far it is from torch. Exit code 2 if something is missing, 1 if too far."""
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="such as another data_dir")
    parser.add_argument("--onnx", metavar="FILE", help="default: network.onnx in the run folder")
    with one_line_errors(data.DataError, model.NetworkError) as outcome:
        arguments = parser.parse_intermixed_args(argv)
        if not arguments.run:
            raise UserError("name the folder of a run: python -m tools.export runs/NAME")
        path = Path(arguments.onnx or Path(arguments.run, "network.onnx"))
        try:
            import onnxruntime
            import onnxscript  # noqa: F401  torch's exporter needs it
        except ImportError as error:
            raise UserError(f"{error}; pip install {NEEDED}") from None
        settings = configuration.of_run(Path(arguments.run), arguments.settings, resume=False)
        network = model.ready(checkpoint.load(Path(arguments.run)))
        found = data.load(settings.dataset, settings.data_dir, settings.holdout, settings.seed)
        images = found.test.images[:500] / 255
        write(network, images[:2].contiguous(), path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        sizes = (1, 7, 500)  # a batch may have any
        worst = max(difference(session, network, images[:count]) for count in sizes)
        size = f"{path.stat().st_size:,} bytes"
        print(
            f"{path}: {size}; largest difference from torch in a logit {worst:.2g}, on {len(images)} images"
        )
        outcome.code = 0 if worst < 1e-3 else 1
    return outcome.code


def write(network: nn.Module, example: Tensor, path: Path) -> None:
    """The network as an ONNX file that takes batches of any size."""
    torch.onnx.export(
        network,
        (example,),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )


@torch.no_grad()
def difference(session: Any, network: nn.Module, images: Tensor) -> float:
    """The largest difference of a logit between onnxruntime's session and torch."""
    (answers,) = session.run(None, {"images": images.contiguous().numpy()})
    return (torch.from_numpy(answers) - network(images)).abs().max().item()


if __name__ == "__main__":
    sys.exit(main())
