"""Records the net benefits of `dcurves`, by the authors of decision curves, as an oracle.

It needs an older pandas than the project, so it runs in an environment of its own::

    python3.11 -m venv /tmp/dc
    /tmp/dc/bin/pip install dcurves
    /tmp/dc/bin/python tests/references/make_dcurves.py

It writes ``dcurves.json`` beside itself: 80 labels and probabilities, drawn at random, and the net
benefit of acting on the probability and on every film at 5 % to 95 %.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pandas as pd
from dcurves import dca

FILMS = 80


def main() -> None:
    """Writes the file."""
    rng = np.random.default_rng(0)
    y = (rng.random(FILMS) < 0.3).astype(int)
    p = (1 / (1 + np.exp(0.5 - rng.normal(size=FILMS) - 1.2 * y))).round(4)
    table = dca(
        data=pd.DataFrame({"y": y, "p": p}),
        outcome="y",
        modelnames=["p"],
        thresholds=np.arange(5, 100, 5) / 100,
    )
    recorded = {"dcurves": importlib.metadata.version("dcurves")}
    recorded |= {"y": y.tolist(), "p": p.tolist()}
    for model in ("p", "all"):
        rows = table[table["model"] == model]
        recorded[f"net_benefit_{model}"] = rows["net_benefit"].tolist()
        recorded["threshold"] = rows["threshold"].tolist()
    path = Path(__file__).with_name("dcurves.json")
    path.write_text(json.dumps(recorded))
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
