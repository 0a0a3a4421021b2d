"""Make the bundled digits, `rolekd_ray/data/digits/{train,test}.parquet`, from scikit-learn's copy.

The images are the test part of the "Optical Recognition of Handwritten Digits" data set by E. Alpaydin and C. Kaynak
(1998), UCI Machine Learning Repository, doi 10.24432/C50P49, licence CC BY 4.0: 1,797 grey images of 8x8 with values
0..16. Changed here: values become 0..255, images become PNG, and 600 of them, drawn by class, become our test split.
The writers of the two splits overlap.

    python launch/make_digits.py            # needs scikit-learn: pip install rolekd_ray[digits]

Run twice with the same versions of pyarrow and Pillow, it writes the same bytes.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

import rolekd_ray
from rolekd_ray.data.splits import stratified_split

ABOUT = {
    "source": "Optical Recognition of Handwritten Digits (test part), E. Alpaydin and C. Kaynak, 1998, "
    "UCI Machine Learning Repository, doi 10.24432/C50P49, by way of scikit-learn's load_digits",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": "values 0..16 scaled to 0..255, encoded as PNG, split 1,197 / 600 by class",
    "made_with": f"pyarrow {pa.__version__}, Pillow {PIL.__version__}",
}
FEATURES = {"image": {"_type": "Image"}, "label": {"names": [str(d) for d in range(10)], "_type": "ClassLabel"}}


def png(image: np.ndarray) -> bytes:
    """Encode one (8, 8) uint8 image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def make(folder: Path) -> None:
    """Write `train.parquet` (1,197 images) and `test.parquet` (600) to `folder`."""
    digits = load_digits()
    images = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    split = stratified_split(torch.from_numpy(digits.target), train=1197, validation=600, seed=0)
    metadata = {**ABOUT, "huggingface": json.dumps({"info": {"features": FEATURES}})}
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("label", pa.int64())], metadata=metadata)
    for name, rows in (("train", split.train), ("test", split.validation)):
        cells = [{"bytes": png(images[row]), "path": f"digits-{row:04d}.png"} for row in rows.tolist()]
        table = pa.table([cells, digits.target[rows.numpy()]], schema=schema)
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd", write_page_checksum=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(rolekd_ray.__file__).parent / "data" / "digits")
