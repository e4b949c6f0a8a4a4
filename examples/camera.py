"""Say what a camera sees: a line of JSON whenever the class changes. Needs edgecifar and OpenCV.

    pip install opencv-python-headless
    python camera.py                        the first camera
    python camera.py rtsp://HOST/STREAM     a network camera, a video file, or any source that OpenCV opens

A class counts once it holds for a few frames. Pictures unlike those the net was trained on are named "unknown", where
the bundle can tell. A source that ends or fails is opened again, for as long as it takes; Ctrl-C ends the program.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np

from edgecifar.runtime import Classifier, EdgecifarError

UNKNOWN = "unknown"


def frames(source: str, retry: float) -> Iterator[np.ndarray]:
    """Yield a source's frames, uint8 [height, width, 3] RGB; open it again `retry` seconds after it ends, 0: never."""
    reported = opened = False
    while True:
        capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        try:
            while True:
                read, frame = capture.read()
                if not read:
                    break
                if reported:
                    print(f"{source} is back.", file=sys.stderr)
                reported, opened = False, True
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()
        if not retry:
            if not opened:
                raise SystemExit(f"{source} gives no picture: see whether it is there and no other program has it.")
            return
        if not reported:
            print(f"{source} gives no picture; trying again every {retry:g} s.", file=sys.stderr)
        reported = True
        time.sleep(retry)


def changes(classifier: Classifier, pictures: Iterator[np.ndarray], hold: int) -> Iterator[dict]:
    """Yield what is seen whenever it changes: a class that `hold` frames in a row agree on."""
    current, candidate, count = None, None, 0
    for number, picture in enumerate(pictures):
        (prediction,) = classifier.predict([picture], top_k=1)
        label = UNKNOWN if prediction.known is False else prediction.label
        count = count + 1 if label == candidate else 1
        candidate = label
        if count < hold or label == current:
            continue
        current = label
        line = {"frame": number, "time": round(time.time(), 3), "class": label}
        if label == UNKNOWN:
            line["nearest"] = prediction.label
        yield {**line, "probability": round(prediction.probability, 4)}


def main() -> None:
    """Run until the source ends for good, or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Say what a camera sees, a line of JSON whenever it changes.")
    parser.add_argument("source", nargs="?", default="0", help="a camera's number, a file or an address")
    parser.add_argument("--bundle", help="a bundle; by default the one that is installed")
    parser.add_argument("--hold", type=int, default=3, help="frames in a row that must agree (default: 3)")
    parser.add_argument("--retry", type=float, default=2, help="seconds before a source is opened again; 0: not at all")
    given = parser.parse_args()
    if not 0 <= given.retry < float("inf"):
        parser.error("--retry is a number of seconds")
    try:
        for line in changes(Classifier(given.bundle), frames(given.source, given.retry), given.hold):
            print(json.dumps(line, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # as by "| head"; nothing is left to be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except EdgecifarError as error:
        sys.exit(f"camera.py: {error}")


if __name__ == "__main__":
    main()
