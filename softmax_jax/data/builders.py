"""TFDS data sets that are prepared and read without TensorFlow.

TFDS's own MNIST builders need TensorFlow to encode images. These write raw pixels as ArrayRecord
files, which `tfds.data_source` reads by random access. Importing this module registers them with
TFDS under the names ``softmax_jax_digits``, ``softmax_jax_mnist`` and
``softmax_jax_fashion_mnist``, apart from TFDS's own.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from softmax_jax.data.idx import read_idx


class _GreyImages(tfds.core.GeneratorBasedBuilder):
    """Grey 8-bit images with one of ten labels."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple[int, int]
    NAMES: tuple[str, ...]
    HOMEPAGE: str
    CITATION: str
    LARGEST_PIXEL = 255

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(
                        shape=self.SHAPE, dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=list(self.NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(largest_pixel=self.LARGEST_PIXEL),
            disable_shuffling=True,
        )

    def _generate_examples(self, images, labels) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


class SoftmaxJaxDigits(_GreyImages):
    """Optical recognition of handwritten digits: 1,797 grey 8x8 images with pixels 0 to 16.

    From the file that scikit-learn ships, so that nothing is downloaded. Every fifth image is for
    testing, which spreads the 13 writers over both splits.
    """

    SHAPE = (8, 8)
    NAMES = tuple("0123456789")
    LARGEST_PIXEL = 16
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"
    CITATION = "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998."

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = digits.images.astype(np.uint8), digits.target
        is_test = np.arange(len(labels)) % 5 == 4
        return {
            "train": self._generate_examples(images[~is_test], labels[~is_test]),
            "test": self._generate_examples(images[is_test], labels[is_test]),
        }


class _IdxImages(_GreyImages):
    """Images and labels from four IDX files, in a folder or at a published address."""

    SHAPE = (28, 28)
    URL: str
    SHA256: dict[str, str]

    def __init__(self, *, folder: str | os.PathLike[str] = "", **kwargs):
        """Takes the folder of the files, if they need not be downloaded, and what TFDS takes."""
        self._folder = folder
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        if self._folder:
            arrays = self.read_folder(self._folder)
        else:
            arrays = {name: read_idx(path) for name, path in self._download(dl_manager).items()}
        self.info.metadata["sha256"] = content_digests(arrays)
        return {
            split: self._generate_examples(
                arrays[f"{prefix}-images-idx3-ubyte"], arrays[f"{prefix}-labels-idx1-ubyte"]
            )
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }

    def _download(self, dl_manager) -> dict[str, pathlib.Path]:
        urls = {name: f"{self.URL}{name}.gz" for name in self.SHA256}
        paths = {name: pathlib.Path(path) for name, path in dl_manager.download(urls).items()}
        for name, path in paths.items():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != self.SHA256[name]:
                for cached in (path, path.with_name(path.name + ".INFO")):
                    cached.unlink(missing_ok=True)  # or the next try would find it
                raise ValueError(
                    f"{urls[name]} has SHA-256 {digest} instead of {self.SHA256[name]}: not the "
                    "published file, so it was removed; try again later, or give a folder of files"
                )
        return paths

    @classmethod
    def read_folder(cls, folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
        """The four arrays from the files of ``folder``, gzipped or not, by their names.

        Raises:
          FileNotFoundError: if one is missing.
          ValueError: if one is damaged, or images and labels do not fit together.
        """
        arrays = {}
        for name in cls.SHA256:
            candidates = [pathlib.Path(folder, name + ending) for ending in (".gz", "")]
            path = next((p for p in candidates if p.is_file()), None)
            if path is None:
                raise FileNotFoundError(
                    f"{folder} has neither {name}.gz nor {name}; it must hold "
                    f"{', '.join(f'{n}.gz' for n in cls.SHA256)}"
                )
            arrays[name] = read_idx(path)
        for prefix in ("train", "t10k"):
            images, labels = (
                arrays[f"{prefix}-images-idx3-ubyte"],
                arrays[f"{prefix}-labels-idx1-ubyte"],
            )
            if images.shape[1:] != cls.SHAPE or labels.shape != (len(images),) or not len(labels):
                raise ValueError(
                    f"{folder}: {prefix} images of shape {images.shape} and labels of shape "
                    f"{labels.shape}; expected n images of {cls.SHAPE} and n labels"
                )
            if labels.max(initial=0) >= len(cls.NAMES):
                row = int(np.argmax(labels))
                raise ValueError(
                    f"{folder}: {prefix} row {row} has label {labels[row]}, but there are "
                    f"{len(cls.NAMES)} classes"
                )
        return arrays


def content_digests(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """SHA-256 of the elements of each array: the same however a file was compressed."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


class SoftmaxJaxMnist(_IdxImages):
    """MNIST: 60,000 + 10,000 grey 28x28 images of handwritten digits."""

    NAMES = tuple("0123456789")
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
    CITATION = "Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits."
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    SHA256 = {  # noqa: RUF012
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    }


class SoftmaxJaxFashionMnist(_IdxImages):
    """Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothing."""

    NAMES = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
    CITATION = "H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017."
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    SHA256 = {  # noqa: RUF012
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    }
