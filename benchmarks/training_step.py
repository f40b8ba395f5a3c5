"""The full training step against raw forward + backward + optimiser step; and TL+KD's epoch against TL's."""

import numpy as np
import torch

from common import CPU, Row, interleaved, network, pixels
from tlkd import specs
from tlkd.batches import Rows
from tlkd.draws import whole
from tlkd.losses import make_loss
from tlkd.training import Task, fit

COUNT, BATCH, SIZE = 192, 64, 96


def main() -> None:
    threads = torch.get_num_threads()
    rng = np.random.default_rng(1)
    labels, source = rng.integers(0, 10, COUNT), pixels(COUNT, SIZE)
    training = specs.Training(epochs=1, batch_size=BATCH, threads=threads)
    soft = Rows(rng.standard_normal((2, COUNT, 10)).astype(np.float32), CPU)
    net = network(size=SIZE, trainable="all")

    def ours(soft_labels: Rows | None) -> None:
        task = Task(source, whole(labels), 2, soft_labels, "dev", source, labels[:1])
        loss = make_loss("tl") if soft_labels is None else make_loss("tl_kd", 0.1, 10.0)
        fit(net, net, loss, task, training, 0, CPU)

    resident, targets = source(np.zeros(BATCH, np.int64), np.arange(BATCH)), torch.from_numpy(labels[:BATCH])

    def raw() -> None:
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        net.train()
        for _ in range(COUNT // BATCH):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(resident), targets).backward()
            optimiser.step()

    note = f"lite0 at {SIZE} px, all trained, batches of {BATCH}, {threads} threads"
    Row("raw step / full training step", interleaved(lambda: ours(None), raw), ">= 0.95", note).print()
    ratios = interleaved(lambda: ours(None), lambda: ours(soft))
    Row("TL+KD epoch / TL epoch, bank built", ratios, "<= 1.03", note).print()


if __name__ == "__main__":
    main()
