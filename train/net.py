"""Net, the six-convolution classifier of 32x32 pictures; it knows nothing about how it is trained or exported.

What others need to know of its layers (names, widths, shapes, the words for it) is said here and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

INPUT_SIZE = 32
"""Height and width of the only pictures that Net takes: `fc1` reads a fixed number of features."""

INPUT_SHAPE = (3, INPUT_SIZE, INPUT_SIZE)
"""The input of one picture: channels, height, width."""

WIDTHS = {"conv1": 16, "conv2": 32, "conv3": 64, "conv4": 128, "conv5": 256, "conv6": 512, "fc1": 1024, "fc2": 256}
"""The hidden layers in the order in which they read one another, and their outputs: channels or units."""

LAYERS = tuple(WIDTHS)
"""The names of the hidden layers; each convolution `convN` is followed by the batch norm `normN`."""

LAST_LAYER = "fc3"
"""The layer that reads the last hidden one; it has an output a class."""

READERS = dict(zip(LAYERS, (*LAYERS[1:], LAST_LAYER), strict=True))
"""The layer that reads each hidden layer."""

FEATURES = (512, 6, 6)
"""The output of the convolutions, which `fc1` reads flat: channels, height, width."""

LAYOUT = "six convolutions and three fully connected layers"
"""The layers in words."""


class Net(nn.Module):
    """Six 3x3 convolutions and three fully connected layers; with ten classes 20,715,146 parameters.

    All convolutions have stride 1, no padding and a bias; each is followed by batch norm and ReLU.
    The pools after blocks 2 and 3 are 1x1, that is identities: they hold no parameters, and are
    kept as modules because they are part of the architecture that is reproduced.

    Args:
        classes: the number of outputs.
        dropout: probability used after each block and after `fc1`. It is a training setting:
            it changes no parameter's name or shape, and nothing in eval mode.
    """

    input_size: ClassVar[int] = INPUT_SIZE

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.norm2 = nn.BatchNorm2d(32)
        self.pool1 = nn.MaxPool2d(2, 2)
        self.conv3 = nn.Conv2d(32, 64, 3)
        self.norm3 = nn.BatchNorm2d(64)
        self.conv4 = nn.Conv2d(64, 128, 3)
        self.norm4 = nn.BatchNorm2d(128)
        self.pool2 = nn.MaxPool2d(1, 1)
        self.conv5 = nn.Conv2d(128, 256, 3)
        self.norm5 = nn.BatchNorm2d(256)
        self.conv6 = nn.Conv2d(256, 512, 3)
        self.norm6 = nn.BatchNorm2d(512)
        self.pool3 = nn.MaxPool2d(1, 1)
        self.dropout = nn.Dropout(dropout)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(512 * 6 * 6, 1024)
        self.fc2 = nn.Linear(1024, 256)
        self.fc3 = nn.Linear(256, classes)

    def features(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, 32, 32] in [-1, 1], to the float [N, 18432] that `fc1` reads.

        Raises:
            ValueError: the pictures have another size.
        """
        if x.shape[1:] != INPUT_SHAPE:
            raise ValueError(f"Net takes [N, {', '.join(map(str, INPUT_SHAPE))}], not {list(x.shape)}")
        relu = self.relu
        x = relu(self.norm1(self.conv1(x)))  # [N, 16, 30, 30]
        x = relu(self.norm2(self.conv2(x)))  # [N, 32, 28, 28]
        x = self.dropout(self.pool1(x))  # [N, 32, 14, 14]
        x = relu(self.norm3(self.conv3(x)))  # [N, 64, 12, 12]
        x = relu(self.norm4(self.conv4(x)))  # [N, 128, 10, 10]
        x = self.dropout(self.pool2(x))
        x = relu(self.norm5(self.conv5(x)))  # [N, 256, 8, 8]
        x = relu(self.norm6(self.conv6(x)))  # [N, 512, 6, 6]
        x = self.dropout(self.pool3(x))
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, 32, 32] in [-1, 1], to logits, float [N, classes]."""
        x = self.features(x)
        x = self.dropout(self.relu(self.fc1(x)))
        x = self.relu(self.fc2(x))
        return self.fc3(x)
