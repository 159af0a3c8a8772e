"""Takes memory until it is stopped, 16 GiB at most: the ending must be `out_of_memory`."""

from prepare import DEVICE, VOCAB_SIZE, open_gate
from torch import nn


class Model(nn.Module):
    """The smallest thing that keeps the contract."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, 16)
        self.head = nn.Linear(16, VOCAB_SIZE)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def build_model(device):
    return Model().to(device)


def main():
    build_model(DEVICE)
    open_gate()
    taken = []
    for _ in range(256):
        taken.append(b"\x01" * (64 << 20))
    print(f"took {len(taken) * 64} MiB and was not stopped")


if __name__ == "__main__":
    main()
