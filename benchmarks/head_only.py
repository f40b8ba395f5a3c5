"""Head-only training out of banks against a minimal plain PyTorch loop of the same arithmetic."""

import numpy as np
import torch
from torch.nn import functional

from common import CPU, Row, interleaved, network
from tlkd import specs
from tlkd.batches import Rows
from tlkd.draws import whole
from tlkd.losses import make_loss
from tlkd.training import Task, fit

COUNT, WIDTH, BATCH, EPOCHS = 5000, 1280, 64, 5


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((2, COUNT, WIDTH)).astype(np.float32)
    soft = rng.standard_normal((2, COUNT, 10)).astype(np.float32)
    labels = rng.integers(0, 10, COUNT)
    net = network(size=48)
    features, logits, targets = torch.from_numpy(bank), torch.from_numpy(soft), torch.from_numpy(labels)

    def ours(with_teacher: bool) -> None:
        soft_labels = Rows(soft, CPU) if with_teacher else None
        task = Task(Rows(bank, CPU), whole(labels), 2, soft_labels, "dev", Rows(bank, CPU), labels[:1])
        loss = make_loss("tl_kd", 0.1, 10.0) if with_teacher else make_loss("tl")
        fit(net, net.classify, loss, task, specs.Training(epochs=EPOCHS, batch_size=BATCH), 0, CPU)

    def plain(with_teacher: bool) -> None:
        head, dropout = torch.nn.Linear(WIDTH, 10), torch.nn.Dropout(0.2)
        optimiser = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for _ in range(EPOCHS):
            order, views = torch.randperm(COUNT), torch.randint(2, (COUNT,))
            for start in range(0, COUNT, BATCH):
                rows = order[start:start + BATCH]
                output = head(dropout(features[views[rows], rows]))
                loss = functional.cross_entropy(output, targets[rows])
                if with_teacher:
                    soft_labels = (logits[views[rows], rows] / 10).log_softmax(1)
                    divergence = functional.kl_div((output / 10).log_softmax(1), soft_labels, reduction="batchmean",
                                                   log_target=True)
                    loss = 0.9 * loss + 0.1 * 100 * divergence
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    for arm, with_teacher in (("TL", False), ("TL+KD", True)):
        ratios = interleaved(lambda: ours(with_teacher), lambda: plain(with_teacher))  # noqa: B023
        Row(f"plain loop / head-only training ({arm})", ratios, ">= 1.0",
            f"{COUNT} samples x {WIDTH} features, batches of {BATCH}, {EPOCHS} epochs, 1 thread").print()


if __name__ == "__main__":
    main()
