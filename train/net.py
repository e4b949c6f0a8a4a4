"""Net, the six-convolution CIFAR-10 classifier; it knows nothing about how it is trained or exported."""

from __future__ import annotations

from torch import Tensor, nn

INPUT_SHAPE = (3, 32, 32)
FEATURES = (512, 6, 6)
"""What the convolutions give: channels, height, width."""
CLASSES = 10


class Net(nn.Module):
    """Six 3x3 convolutions and three fully connected layers, 20,715,146 parameters.

    All convolutions have stride 1, no padding and a bias; each is followed by batch norm and ReLU.
    The pools after blocks 2 and 3 are 1x1, that is identities: they hold no parameters, and are
    kept as modules because they are part of the architecture that is reproduced.

    Args:
        dropout: probability used after each block and after `fc1`. It is a training setting:
            it changes no parameter's name or shape, and nothing in eval mode.
    """

    def __init__(self, dropout: float = 0.5) -> None:
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
        self.fc3 = nn.Linear(256, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Map `x`, float [N, 3, 32, 32] in [-1, 1], to the float [N, 18432] that `fc1` reads."""
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
        """Map `x`, float [N, 3, 32, 32] in [-1, 1], to logits, float [N, 10]."""
        x = self.features(x)
        x = self.dropout(self.relu(self.fc1(x)))
        x = self.relu(self.fc2(x))
        return self.fc3(x)
