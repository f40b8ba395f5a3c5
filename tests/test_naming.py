"""What annotation files call images, and which samples they mean."""

import pytest

from tlkd.naming import Names

IDS = ("test/cat/0001.jpg", "test/cat/0002.jpg", "test/dog/0001.jpg", "test/dog/night 7.JPG", "test/dog/a.b.png",
       "train/cat/0003.jpg", "train/dog/0007.jpg", "test/dog/50%.jpg")


@pytest.mark.parametrize(("name", "found"), [
    ("test/cat/0001.jpg", "test/cat/0001.jpg"),  # the id
    ("cat/0001.jpg", "test/cat/0001.jpg"), ("0002.jpg", "test/cat/0002.jpg"),  # its end
    ("/home/me/set/test/cat/0001.jpg", "test/cat/0001.jpg"), ("./test/cat/0001.jpg", "test/cat/0001.jpg"),
    ("C:\\set\\test\\cat\\0001.jpg", "test/cat/0001.jpg"), ("..\\cat\\0002.jpg", "test/cat/0002.jpg"),
    ("night%207.JPG", "test/dog/night 7.JPG"), ("http://host/test/dog/night%207.JPG?v=2", "test/dog/night 7.JPG"),
    ("50%.jpg", "test/dog/50%.jpg"),
    ("test/cat/0001.png", "test/cat/0001.jpg"), ("0002", "test/cat/0002.jpg"), ("a.b.jpg", "test/dog/a.b.png"),
    ("NIGHT 7.jpg", "test/dog/night 7.JPG"), ("Test/Cat/0002.JPG", "test/cat/0002.jpg"),
    ("test/cat/0001_mask.png", "test/cat/0001.jpg"), ("0002_MASK.png", "test/cat/0002.jpg"),
    ("0003.jpg", "train/cat/0003.jpg"),
])
def test_names_and_the_sample_they_mean(name: str, found: str) -> None:
    assert ([IDS[number] for number in Names(IDS).find(name)[0]], Names(IDS).find(name)[1]) == ([found], False)


def test_unknown_folders_are_cut_off_and_that_is_said() -> None:
    assert Names(IDS).find("images/cat/0001.jpg") == ([0], True)
    assert Names(IDS).find("images/default/0002.jpg") == ([1], True)


@pytest.mark.parametrize("name", ["train/cat/0001.jpg", "dog/0002.jpg", "images/dog/0002.jpg", "Train/0002.jpg",
                                  "0004.jpg", "1.jpg", "", "/", "..", "cat", "test/cat"])
def test_names_that_mean_no_sample(name: str) -> None:
    assert Names(IDS).find(name)[0] == []


def test_a_name_may_mean_several() -> None:
    assert Names(IDS).find("0001.jpg") == ([0, 2], False)
    assert Names(("a/1.jpg", "a/1.png")).find("1.gif")[0] == [0, 1]


def test_the_name_as_it_stands_comes_first() -> None:
    names = Names(("t/1.jpg", "t/1.png", "t/1.PNG", "t/2.jpg", "t/2_mask.jpg", "1.jpg", "t/A.jpg", "t/a.jpg"))
    assert names.find("A.png")[0] == [6]
    assert names.find("t/1.png")[0] == [1]
    assert names.find("2_mask.jpg")[0] == [4]
    assert names.find("1.jpg")[0] == [5]
