"""Raises after the gate: the ending must be `crashed`."""

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
    raise RuntimeError("this candidate always fails")


if __name__ == "__main__":
    main()
