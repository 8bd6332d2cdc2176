"""CIFAR-10 and CIFAR-100: 60,000 colour photographs each, 32×32 (Krizhevsky, 2009)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dreamlib._engine import lazy_torchvision as torchvision
from dreamlib.data.base import DATASETS, PublishedDataset, from_bytes
from dreamlib.data.cifar_sources import Archive, PngFolder, Reader, read_canonical
from dreamlib.data.fetch import DataError, LocalFolder, Mirror, PublishedFile, Source
from dreamlib.data.types import DatasetInfo, LabeledImages, Statistics

# Per-channel statistics of the distillation literature. IDC and DREAM use those of CIFAR-10 for both data sets; DC and
# its successors use others for CIFAR-100.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DC_CIFAR100 = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
# Over all pixels of the training images. CIFAR-100's are DC's, up to rounding.
PIXELS_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# MD5s of the canonical files, see ``cifar_sources``.
CIFAR10_MD5S = {"train": "e56d77c4a44d3de16c5dd67fd5c2a994", "test": "887ce902aeb2e1f10f99c7cfe4517a1f"}
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
    reader_name: ClassVar[str] = "CIFAR10"
    dc_statistics: ClassVar[Statistics | None] = None
    pixel_statistics: ClassVar[Statistics] = PIXELS_CIFAR10
    md5s: ClassVar[dict[str, str]] = CIFAR10_MD5S

    @property
    def info(self) -> DatasetInfo:
        """A mirrored photograph keeps its class, so ``flip`` is True."""
        statistics = {"dc_statistics": self.dc_statistics, "pixel_statistics": self.pixel_statistics}
        return DatasetInfo(self.name, self.classes, 3, 32, MEAN, STD, flip=True, **statistics)

    @property
    def reader(self) -> Reader:
        """torchvision's class, which lists the published files."""
        return getattr(torchvision.datasets, self.reader_name)

    def files(self) -> tuple[PublishedFile, ...]:
        """Return the canonical files, one per split (see ``cifar_sources``)."""
        return tuple(PublishedFile(f"{split}.safetensors", self.md5s.get(split, "")) for split in ("train", "test"))

    def sources(self) -> tuple[Source, ...]:
        """Return the archive on the author's server."""
        return (Archive(self.reader, Mirror(self.reader.url.removesuffix(self.reader.filename))),)

    def sources_at(self, path: Path) -> tuple[Source, ...]:
        """Return the source at ``path``: the archive or a folder containing it, else a folder of PNG files."""
        folder = path.parent if path.name == self.reader.filename else path
        if (folder / self.reader.filename).is_file():
            return (Archive(self.reader, LocalFolder(str(folder), folder)),)
        if not self.md5s:
            raise DataError(
                f"{path} has no {self.reader.filename}: images of {self.name} can be verified only by the archive, "
                "whose MD5 is published; put it there"
            )
        return (PngFolder(self.reader, path, self.classes),)

    def read(self, split: str, folder: Path) -> LabeledImages:
        """Return (N, 3, 32, 32), ordered by class and file name."""
        parts = read_canonical(folder / f"{split}.safetensors")
        return from_bytes(parts["images"], parts["labels"], num_classes=len(self.classes))


@DATASETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100(Cifar10):
    """50,000 training and 10,000 test photographs in a hundred classes (the fine labels)."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[tuple[str, ...]] = tuple(CIFAR100_NAMES.split())
    reader_name: ClassVar[str] = "CIFAR100"
    dc_statistics: ClassVar[Statistics | None] = DC_CIFAR100
    pixel_statistics: ClassVar[Statistics] = DC_CIFAR100
    md5s: ClassVar[dict[str, str]] = {}  # not known in advance: the archive's MD5 is verified instead
