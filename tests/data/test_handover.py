"""DALI's memory in torch's hands: valid as long as somebody looks, and never dropped before a GPU has read it."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fastssl.data import decode
from fastssl.data.decode import DaliDecoder, decode_one, make_decoder
from fastssl.data.handover import HandOver
from fastssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def dali():
    return pytest.importorskip("nvidia.dali", reason="DALI is not installed")


@pytest.mark.parametrize("ragged", [False, True])
def test_pixels_outlive_later_batches_the_pipeline_and_the_decoder(dali, make_jpeg, ragged):
    """Also where only a part of one image is kept."""
    decoder = DaliDecoder(threads=2)
    kept, parts, expected = [], [], []
    for turn in range(30):
        files = [make_jpeg(40 + (i if ragged else 0), 48, 100 * turn + i) for i in range(4)]
        images = decoder.decode(files).images
        assert isinstance(images, torch.Tensor) != ragged
        expected.append([decode_one(data) for data in files])
        kept.append(images)
        parts.append(decoder.decode(files).images[2][5:9])
        del images
    decoder.close()
    del decoder
    gc.collect()
    for images, part, wanted in zip(kept, parts, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, wanted, strict=True))
        assert torch.equal(part, wanted[2][5:9])


def test_on_the_cpu_a_batch_of_one_size_is_not_copied(dali, make_jpeg):
    decoder = DaliDecoder(threads=1)
    decoder.decode([make_jpeg(16, 16)])
    taken: list[int] = []
    take = decoder._handover.take
    decoder._handover.take = lambda outputs: taken.extend(o.data_ptr() for o in outputs) or take(outputs)
    images = decoder.decode([make_jpeg(16, 16, i) for i in range(3)]).images
    assert taken == [images.data_ptr()]
    decoder.close()


def test_small_batches_of_unlike_images_share_a_block_that_is_used_again(dali, make_jpeg, monkeypatch):
    """Decoded in pieces of at most 20 kB, the third image (24 kB) by itself."""
    monkeypatch.setattr(decode, "PIECE", 20_000)
    decoder = DaliDecoder(threads=1)
    pieces: list[int] = []
    run = decoder._run
    decoder._run = lambda encoded: pieces.append(len(encoded)) or run(encoded)
    files = [make_jpeg(height, 50, height) for height in (40, 60, 160, 30, 30)]
    images = decoder.decode(files).images
    assert pieces == [2, 1, 2]
    assert all(torch.equal(image, decode_one(data)) for image, data in zip(images, files, strict=True))
    assert len({image.untyped_storage().data_ptr() for image in images}) == 1
    first = images[0].data_ptr()
    assert decoder.decode(files).images[0].data_ptr() != first
    del images
    assert decoder.decode(files[:2]).images[0].data_ptr() == first
    decoder.close()


def test_memory_goes_back_when_the_last_look_ends():
    """The chain that a CPU batch relies on: storage → capsule → owner of the memory."""

    class Owner(np.ndarray):
        pass

    owner = np.arange(12, dtype=np.uint8).view(Owner)
    gone = weakref.ref(owner)
    (tensor,) = HandOver(torch.device("cpu")).take([owner])
    look = tensor[3:5]
    del owner, tensor
    gc.collect()
    assert gone() is not None
    assert look.tolist() == [3, 4]
    del look
    gc.collect()
    assert gone() is None


class Story:
    """Stands in for torch's CUDA streams and DALI's tensors, and notes what happens when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        story = self

        class Stream:
            def synchronize(self) -> None:
                story.events.append("wait")

        class Copy:
            def record_stream(self, stream: str) -> None:
                story.events.append(f"recorded on {stream}")

        class Theirs:
            def clone(self) -> Copy:
                story.events.append("copy")
                return Copy()

            def __del__(self) -> None:
                story.events.append("drop")

        @contextmanager
        def within(stream):
            story.events.append("enter")
            yield
            story.events.append("leave")

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "stream", within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the user's stream")
        monkeypatch.setattr(torch, "from_dlpack", lambda output: Theirs())


def test_on_a_gpu_dali_keeps_its_memory_until_the_copy_is_done(monkeypatch):
    story = Story(monkeypatch)
    taken = HandOver(torch.device("cuda", 0)).take(["a", "b"])
    gc.collect()
    assert len(taken) == 2
    order = ["enter", "copy", "copy", "leave", "wait", "drop", "drop"]
    assert story.events == order + 2 * ["recorded on the user's stream"]


# --------------------------------------------------------------------------------------------- the hardware decoder


@pytest.mark.parametrize(("device", "share"), [("cuda", 0.3), ("cuda", None), ("cpu", 0.3)])
def test_the_share_of_the_hardware_decoder_reaches_dali_on_a_gpu_alone(dali, device, share, monkeypatch):
    given = {}

    class Stop(Exception):
        pass

    def image(encoded, **options):
        given.update(options)
        raise Stop

    keywords = {} if share is None else {"hw_decoder_load": share}
    decoder = make_decoder("dali", device=device, **keywords)
    monkeypatch.setattr(decoder._fn.decoders, "image", image)
    with pytest.raises(Stop):
        decoder._build()
    wanted = {"device": "mixed", "hw_decoder_load": share or decode.HW_DECODER_LOAD}
    assert given == (wanted if device == "cuda" else {"device": "cpu"})
    assert decode.HW_DECODER_LOAD == 0.65


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_impossible_shares(share):
    with pytest.raises(UserError, match=r"hw_decoder_load must be in \[0, 1\], got"):
        make_decoder("auto", hw_decoder_load=share)


# -------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@needs_gpu
def test_pixels_on_a_gpu_are_not_overwritten_while_they_are_read(dali, make_jpeg):
    """Images are dropped while slow kernels still have to read them, and DALI goes on at once."""
    device = torch.device("cuda", 0)
    decoder = DaliDecoder(device=device, threads=2)
    busy = torch.randn(4096, 4096, device=device)
    sums, expected = [], []
    for turn in range(20):
        images = decoder.decode([make_jpeg(200, 200 + 8 * (i % 2), 10 * turn + i) for i in range(8)]).images
        torch.cuda.synchronize()
        expected.append([image.sum(dtype=torch.int64).item() for image in images])
        for _ in range(10):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append([image.sum(dtype=torch.int64) for image in images])
        del images
    assert [[value.item() for value in row] for row in sums] == expected
    decoder.close()
