"""A trained network as an ONNX file: any number of images N×3×32×32 from 0 to 1 in, logits out, the normalisation inside.

    python -m tools.export runs/NAME [--onnx FILE] [name=value ...]

The file is checked against torch with onnxruntime on the run's own test images.
"""

import argparse
import sys
from pathlib import Path

import torch

import data
import files
import model
import settings as configuration

NEEDED = "onnx onnxscript onnxruntime"


def main(argv=None):
    """Write the file, compare it with torch and print the largest difference of a logit; exit code 2 if something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="such as another data_dir")
    parser.add_argument("--onnx", metavar="FILE", help="default: network.onnx in the run folder")
    arguments = parser.parse_intermixed_args(argv)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        print(f"error: {error}; pip install {NEEDED}", file=sys.stderr)
        return 2
    try:
        files.load(Path(arguments.run, "last.pt"))
        settings = configuration.read(arguments.settings, Path(arguments.run, "config.yaml"))
        images = data.load(settings.dataset, settings.data_dir).test.images[:500] / 255
    except (files.RunError, configuration.SettingsError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    network, path = model.load(Path(arguments.run, "last.pt")), arguments.onnx or str(Path(arguments.run, "network.onnx"))
    torch.onnx.export(network, (images[:2].contiguous(),), path, input_names=["images"], output_names=["logits"], dynamo=True, external_data=False,
                      dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (images[:1], images[:7], images):  # the batch size is free
        with torch.no_grad():
            expected = network(batch)
        logits = torch.from_numpy(session.run(None, {"images": batch.contiguous().numpy()})[0])
        worst = max(worst, (logits - expected).abs().max().item())
    print(f"{path}: {Path(path).stat().st_size:,} bytes; largest difference from torch in a logit {worst:.2g}, on {len(images)} test images")
    return 0 if worst < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
