"""TFDS data sets that are prepared and read without TensorFlow.

TFDS's own MNIST builders need TensorFlow to encode images. These write raw pixels as ArrayRecord
files, which `tfds.data_source` reads by random access. Importing this module registers them with
TFDS under the names ``softmax_jax_digits``, ``softmax_jax_mnist`` and
``softmax_jax_fashion_mnist``, apart from TFDS's own. What they prepare has digests of its files.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from softmax_jax._annotations import Integer, NDArray
from softmax_jax.data.idx import read_idx
from softmax_jax.data.npz import MAX_BYTES
from softmax_jax.data.prepared import write_digests

# More than 60,000 images have; 47 MB.
_MOST_DOWNLOADED = 2**26


class _GreyImages(tfds.core.GeneratorBasedBuilder):
    """Grey 8-bit images with one of ten labels."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.1.0": "With digests of the prepared files."}
    SHA256: ClassVar[dict[str, str]]
    """Digests of images and labels for training and testing, see `content_digests`."""
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

    def _post_download_and_prepare_hook(self) -> None:
        write_digests(pathlib.Path(self.data_path))

    def _generate_examples(
        self, images: Integer[NDArray, "n height width"], labels: Integer[NDArray, " n"]
    ) -> Iterator[tuple[int, dict[str, NDArray | int]]]:
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
    SHA256: ClassVar[dict[str, str]] = {
        "train images": "c7d866edd7dd55767b097a8bbe48258c90f47027388ef42c6c2cc89aa7e9c8bd",
        "train labels": "c5a5ba04f14f293a77624c91f41bdd7f73b6495ef0ed7d8cf890d5b6633908cf",
        "test images": "32db2c93c6aa3f03e1880d61f36dc1cb08ef2b7f6cf899a762ba8dc555b36538",
        "test labels": "ac864e225e221996a9a38cd498500277d4906ed30da1f7949514933cb09738ad",
    }
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

    def __init__(
        self, *, folder: str | os.PathLike[str] = "", max_bytes: int = MAX_BYTES, **kwargs
    ):
        """Takes the folder of the files, if they need not be downloaded, and what TFDS takes."""
        self._folder, self._max_bytes = folder, max_bytes
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        if self._folder:
            arrays = self.read_folder(self._folder, max_bytes=self._max_bytes)
        else:
            arrays = self._download(dl_manager)
        return {
            split: self._generate_examples(
                arrays[f"{prefix}-images-idx3-ubyte"], arrays[f"{prefix}-labels-idx1-ubyte"]
            )
            for split, prefix in (("train", "train"), ("test", "t10k"))
        }

    def _download(self, dl_manager) -> dict[str, Integer[NDArray, "..."]]:
        urls = {name: f"{self.URL}{name}.gz" for name in self.SHA256}
        paths = {name: pathlib.Path(path) for name, path in dl_manager.download(urls).items()}
        arrays = {}
        for name, path in paths.items():
            try:
                # Its digest is that of the content, which is not unpacked beyond this.
                arrays[name] = read_idx(path, max_bytes=_MOST_DOWNLOADED)
                if content_digests({name: arrays[name]})[name] != self.SHA256[name]:
                    raise ValueError("its content is not the published one")
            except ValueError as e:
                for cached in (path, path.with_name(path.name + ".INFO")):
                    cached.unlink(missing_ok=True)  # or the next try would find it
                raise ValueError(
                    f"{urls[name]}: {e}; it was removed again: try later, or give a folder of files"
                ) from e
        return arrays

    @classmethod
    def read_folder(
        cls, folder: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
    ) -> dict[str, Integer[NDArray, "..."]]:
        """Reads the four arrays from the files of ``folder``, gzipped or not, by their names.

        Args:
          folder: of the files.
          max_bytes: what a gzipped file may unpack to.

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
            arrays[name] = read_idx(path, max_bytes=max_bytes)
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


def content_digests(arrays: dict[str, Integer[NDArray, "..."]]) -> dict[str, str]:
    """Returns the SHA-256 of the elements of each array as uint8.

    It is the same however a file was compressed.
    """
    return {
        name: hashlib.sha256(array.astype(np.uint8, order="C", copy=False).data).hexdigest()
        for name, array in arrays.items()
    }


class SoftmaxJaxMnist(_IdxImages):
    """MNIST: 60,000 + 10,000 grey 28x28 images of handwritten digits."""

    NAMES = tuple("0123456789")
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
    CITATION = "Y. LeCun, C. Cortes and C. Burges, The MNIST database of handwritten digits."
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    SHA256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"
        ),
        "train-labels-idx1-ubyte": (
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"
        ),
        "t10k-images-idx3-ubyte": (
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"
        ),
        "t10k-labels-idx1-ubyte": (
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"
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
    URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
    SHA256: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": (
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"
        ),
        "train-labels-idx1-ubyte": (
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
        ),
        "t10k-images-idx3-ubyte": (
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
        ),
        "t10k-labels-idx1-ubyte": (
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"
        ),
    }
