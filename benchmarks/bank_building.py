"""Building a bank (decoding excluded) against the raw network's forward pass on a resident batch."""

import numpy as np
import torch

from common import Row, interleaved, network, pixels
from tlkd import banks


def main() -> None:
    for name, size in (("packaged:efficientnet_lite0", 96), ("packaged:efficientnet_lite1", 64)):
        count, batch = 256, banks.BATCH["cpu"]
        net, source = network(name, size), pixels(count, size)
        resident = source(np.zeros(batch, np.int64), np.arange(batch))
        array = np.empty((2, count, net.width), np.float32)

        def build(array: np.ndarray = array, source=source, net=net) -> None:
            banks.write(array, source, net.features, "bank")

        def raw(array: np.ndarray = array, resident: torch.Tensor = resident, net=net, batch: int = batch) -> None:
            with torch.inference_mode():
                for _ in range(array.shape[0] * array.shape[1] // batch):
                    net.features(resident)

        what = f"raw forward / bank building ({name.partition(':')[2]}, 32 to {size} px)"
        Row(what, interleaved(build, raw), ">= 0.95",
            f"{array.shape[1]} images in 2 views, batches of {batch}, {torch.get_num_threads()} threads").print()


if __name__ == "__main__":
    main()
