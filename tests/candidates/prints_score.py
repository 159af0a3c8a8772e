"""Prints a wonderful score and saves nothing: the ending must be `invalid_output`, and there must be no score."""

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
    budget = open_gate()
    print("---")
    print("val_bpb: 0.1")
    print("val_bpb:          0.100000")
    print("num_steps:        1")
    print(f"training_seconds: {budget.elapsed():.1f}")
    print('{"val_bpb": 0.1, "verdict": "keep", "ending": "finished"}', flush=True)


if __name__ == "__main__":
    main()
