"""What bulk.py runs in processes of their own: parts of `predict`, peers, Ray. Each says its images/s at its end."""

from __future__ import annotations

HEAD = """\
import sys, time
from pathlib import Path

def files(folder):
    return sorted(str(path) for path in Path(folder).iterdir())

def say(count, begin):
    print(f"{count / (time.perf_counter() - begin):.1f}/s")

"""

BARE = (
    HEAD
    + """\
from multiprocessing import get_context
from PIL import Image

SIZE = int(sys.argv[3])

def decode(path):
    image = Image.open(path)
    image.draft("RGB", (4 * SIZE, 4 * SIZE))
    side = min(image.size)
    return image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(0, 0, side, side)).tobytes()

if __name__ == "__main__":
    paths = files(sys.argv[1])
    begin = time.perf_counter()
    with get_context("forkserver").Pool(int(sys.argv[2])) as pool:
        done = sum(1 for _ in pool.imap(decode, paths, chunksize=16))
    say(done, begin)
"""
)

DECODING = (
    HEAD
    + """\
from edgecifar.runtime import Bundle
from edgecifar.runtime.parallel import decode_many

if __name__ == "__main__":
    paths, contract = files(sys.argv[1]), Bundle.open(sys.argv[3]).contract
    begin = time.perf_counter()
    say(sum(one.picture is not None for one in decode_many(paths, contract, jobs=int(sys.argv[2]))), begin)
"""
)

INFERENCE = (
    HEAD
    + """\
import numpy as np
from edgecifar.runtime import Classifier

classifier = Classifier(sys.argv[1], sys.argv[2], "cpu")
count, images = int(sys.argv[3]), np.random.default_rng(0).integers(0, 256, (64, *classifier.contract.picture_shape))
images = images.astype(np.uint8)
classifier.probabilities(images)
begin = time.perf_counter()
for _ in range(0, count, 64):
    classifier.probabilities(images)
say(-(-count // 64) * 64, begin)
"""
)

DATALOADER = (
    HEAD
    + """\
import numpy as np
import onnxruntime
import torch
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths, size):
        self.paths = paths
        self.transform = Compose([Resize(size), CenterCrop(size), PILToTensor()])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, place):
        return self.transform(default_loader(self.paths[place]))

if __name__ == "__main__":
    paths, size, workers = files(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
    loader = torch.utils.data.DataLoader(Pictures(paths, size), batch_size=64, num_workers=workers)
    begin = time.perf_counter()
    done = 0
    for batch in loader:
        images = np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())
        done += len(session.run(["probabilities"], {session.get_inputs()[0].name: images})[0].argmax(1))
    say(done, begin)
"""
)

ULTRALYTICS = (
    HEAD
    + """\
from ultralytics import YOLO

if __name__ == "__main__":
    folder, size = sys.argv[1], int(sys.argv[2])
    model = YOLO("yolo11n-cls.yaml", task="classify")  # untrained: the speed is the same, and nothing is downloaded
    model.predict(files(folder)[0], imgsz=size, verbose=False)
    begin = time.perf_counter()
    found = model.predict(folder, imgsz=size, batch=64, stream=True, verbose=False)
    say(sum(1 for one in found if one.probs.top1 >= 0), begin)
"""
)

RAY = (
    HEAD
    + """\
import os
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
import ray
from edgecifar.runtime.bulk import Classify, PackedBundle

if __name__ == "__main__":
    folder, bundle, variant, jobs, out = sys.argv[1:]
    ray.init(num_cpus=int(jobs), include_dashboard=False, log_to_driver=False)
    packed = PackedBundle.of(bundle, variant)
    begin = time.perf_counter()
    pictures = ray.data.read_binary_files(folder, include_paths=True)
    options = {"batch_format": "pyarrow", "batch_size": 256, "num_cpus": 1, "concurrency": (1, int(jobs))}
    pictures.map_batches(Classify, fn_constructor_kwargs={"bundle": packed}, **options).write_parquet(out)
    say(len(files(folder)), begin)
"""
)
