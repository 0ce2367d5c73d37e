"""What a run says and counts of images that cannot be read, over all the processes that it takes."""

from types import SimpleNamespace

from fastssl.data.quarantine import Quarantine
from fastssl.engine.notices import Unreadable

SOURCE = SimpleNamespace(name=lambda sample: f"{sample}.jpg")


def test_an_image_found_before_a_restart_is_counted_and_not_named_again(tmp_path):
    """The last process of a run may be too short to meet the image again."""
    path, said, results = tmp_path / "quarantine.json", [], {}
    first = Quarantine(100, path=path)
    first.add({7: ("7.jpg", "truncated")})
    notices = Unreadable(SOURCE, None, results, said.append)
    notices.tell(first)
    notices.tell(first)
    assert (results["unreadable_images"], said) == (1, ["unreadable image replaced: 7.jpg (truncated)"])

    said.clear()
    second = Quarantine(100, path=path)
    notices = Unreadable(SOURCE, None, results, said.append)
    notices.tell(second)
    assert (results["unreadable_images"], said) == (1, [])
    second.add({7: ("7.jpg", "truncated"), 9: ("9.jpg", "empty")})
    notices.tell(second)
    assert (results["unreadable_images"], len(said)) == (2, 2)


def test_missing_masks_are_not_forgotten_either():
    results = {"images_without_mask": 3}
    notices = Unreadable(SOURCE, SimpleNamespace(missing={"1.jpg": "no mask"}), results, print)
    notices.tell(Quarantine(100))
    assert results == {"images_without_mask": 3, "unreadable_images": 0}
