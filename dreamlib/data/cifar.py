"""CIFAR-10 and CIFAR-100: 60,000 colour photographs each, 32×32 (Krizhevsky, 2009)."""

import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dreamlib._engine.torchvision_import import torchvision
from dreamlib.data.base import DATASETS, PublishedDataset, from_bytes
from dreamlib.data.fetch import DataError, Mirror, PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages, Statistics

# Per-channel statistics of the distillation literature. IDC and DREAM use those of CIFAR-10 for both data sets; DC and
# its successors use other ones for CIFAR-100.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DC_CIFAR100 = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
# Over all pixels of the training images. CIFAR-100's are DC's, up to rounding.
PIXELS_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10(PublishedDataset):
    """50,000 training and 10,000 test photographs of ten kinds of animals and vehicles."""

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[tuple[str, ...]] = tuple(CIFAR10_NAMES.split())
    reader: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10
    dc_statistics: ClassVar[Statistics | None] = None
    pixel_statistics: ClassVar[Statistics] = PIXELS_CIFAR10

    @property
    def info(self) -> DatasetInfo:
        """A mirrored photograph keeps its class, so ``flip`` is True."""
        also = {"dc_statistics": self.dc_statistics, "pixel_statistics": self.pixel_statistics}
        return DatasetInfo(self.name, self.classes, 3, 32, MEAN, STD, flip=True, **also)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the single archive."""
        return (PublishedFile(self.reader.filename, self.reader.tgz_md5),)

    def sources(self) -> tuple[Source, ...]:
        """Return the author's server."""
        return (Mirror(self.reader.url.removesuffix(self.reader.filename)),)

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 3, 32, 32), unpacked in a temporary folder because ``folder`` holds only published files."""
        with tempfile.TemporaryDirectory() as root:
            self._unpack(folder / self.reader.filename, Path(root))
            with warnings.catch_warnings():
                # Python 2 wrote these pickles with a dtype flag of 0, for which numpy 2.4.0 to 2.4.4 warn.
                category = np.exceptions.VisibleDeprecationWarning
                warnings.filterwarnings("ignore", message=".*align should be passed", category=category)
                dataset = self.reader(root, train=split == "train", download=False)
        return from_bytes(dataset.data.transpose(0, 3, 1, 2), dataset.targets, num_classes=len(self.classes))

    def _unpack(self, archive: Path, root: Path) -> None:
        names = [name for name, _ in self.reader.train_list + self.reader.test_list] + [self.reader.meta["filename"]]
        (root / self.reader.base_folder).mkdir()
        with tarfile.open(archive) as tar:
            for name in names:
                member = tar.extractfile(f"{self.reader.base_folder}/{name}")
                if member is None:
                    raise DataError(f"{archive} contains no file {self.reader.base_folder}/{name}")
                (root / self.reader.base_folder / name).write_bytes(member.read())


@DATASETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100(Cifar10):
    """50,000 training and 10,000 test photographs in a hundred classes (the fine labels)."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[tuple[str, ...]] = tuple(CIFAR100_NAMES.split())
    reader: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR100
    dc_statistics: ClassVar[Statistics | None] = DC_CIFAR100
    pixel_statistics: ClassVar[Statistics] = DC_CIFAR100
