import numpy as np
import pytest
import torch
from image_world import write_layout
from PIL import Image
from timm.data import create_transform

from lidc_cdam.errors import LidcCdamError
from lidc_cdam.images import Classes, Input, find_images, read_class_list, read_image

CLASSES = Classes(("n1", "n2", "n3", "n4"), ("tench, Tinca tinca", "crane", "crane, lifting machine", "zebra"))


def saved(folder, array, name="a.png"):
    path = folder / name
    Image.fromarray(array).save(path)
    return path


def gradient(dtype, high):
    return np.linspace(0, high, 64).reshape(8, 8).astype(dtype)


def test_grey_of_8_and_16_bits_reads_alike(tmp_path):
    eight = np.asarray(read_image(saved(tmp_path, gradient(np.uint8, 255), "8.png")))
    sixteen = np.asarray(read_image(saved(tmp_path, (gradient(np.uint8, 255).astype(np.uint16) * 257), "16.png")))
    assert eight.shape == (8, 8, 3)
    np.testing.assert_array_equal(eight, sixteen)
    assert eight.max() == 255


def test_what_is_transparent_stands_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    seen = np.asarray(read_image(saved(tmp_path, pixels)))
    assert (seen[:2] == 0).all()
    assert (seen[2:] == 255).all()
    Image.new("LA", (4, 4), (10, 0)).save(tmp_path / "la.png")
    assert (np.asarray(read_image(tmp_path / "la.png")) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 10, 10] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (np.asarray(read_image(tmp_path / "p.png")) == 255).all()


def test_cmyk_and_palette_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    red, green, blue = np.asarray(read_image(tmp_path / "c.jpg"))[4, 4].tolist()
    assert red > 240
    assert green < 20
    assert blue < 20
    Image.new("1", (8, 8), 1).save(tmp_path / "one.png")
    assert (np.asarray(read_image(tmp_path / "one.png")) == 255).all()


def test_the_cameras_orientation_is_applied(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    seen = np.asarray(read_image(tmp_path / "turned.png"))
    assert seen.shape == (8, 4, 3)
    assert (seen[:4] == 255).all()
    assert (seen[4:] == 0).all()


def corrupt(folder, kind):
    path = folder / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    elif kind == "float":
        path = folder / "x.tif"
        Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(path)
    else:
        path.unlink()
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["cut short", "text", "empty", "missing", "float", "folder"])
def test_what_is_no_image_is_one_sentence(tmp_path, kind):
    with pytest.raises(LidcCdamError, match=r"x\.(png|tif) must be an image that can be read, but it cannot"):
        read_image(corrupt(tmp_path, kind))


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99 * 99)
    with pytest.raises(LidcCdamError, match="must have at most 9801 pixels"):
        read_image(tmp_path / "big.png")


def test_images_are_found_and_others_passed_over(tmp_path):
    write_layout(tmp_path, 1, roles=("",))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / ".hidden" / "x.png")
    Image.new("L", (4, 4)).save(tmp_path / "UPPER.JPEG")
    assert find_images(tmp_path) == ["UPPER.JPEG", "blue/0.png", "green/0.png", "red/0.png"]


def test_a_folder_without_images_is_one_sentence(tmp_path):
    with pytest.raises(LidcCdamError, match="must hold images"):
        find_images(tmp_path)
    with pytest.raises(LidcCdamError, match="must be a folder of images"):
        find_images(tmp_path / "absent")


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256)])
def test_what_is_shown_is_what_timm_shows(size):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    ours = Input((112, 112), crop_share=0.875).shown(image)
    theirs = create_transform((3, 112, 112), interpolation="bicubic", crop_pct=0.875)(image)
    mean, sd = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = (theirs * sd + mean).movedim(0, 2).numpy() * 255
    # timm rounds the size before it cuts, so the rectangles differ by a part of a pixel.
    assert np.abs(ours - theirs).mean() < 4


def test_the_rectangle_is_central_and_has_the_inputs_shape():
    assert Input((100, 200)).box(400, 400) == (0, 100, 400, 300)
    assert Input((10, 10), crop_share=0.5).box(40, 20) == (15, 5, 25, 15)
    with pytest.raises(LidcCdamError, match="crop_share"):
        Input((10, 10), crop_share=0)


def test_classes_are_found_by_key_and_by_name():
    assert [CLASSES.find(word) for word in ("n1", "Tench", "tinca tinca", "lifting machine")] == [
        "n1",
        "n1",
        "n1",
        "n3",
    ]
    assert CLASSES.title("n1") == "tench"
    with pytest.raises(LidcCdamError, match="'crane' names several classes; choose one of n2, n3"):
        CLASSES.find("crane")
    with pytest.raises(LidcCdamError, match="did you mean 'zebra'"):
        CLASSES.find("zebar")
    with pytest.raises(LidcCdamError, match="at least 2"):
        Classes(("one",))


def test_a_class_list_is_read(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("image,class,other_class\na.png,tench,zebra\nb.png,n2,\n")
    listed = read_class_list(path, ["a.png", "b.png", "c.png"], CLASSES)
    assert listed.targets("a.png") == ("n1", "n4")
    assert listed.targets("b.png") == ("n2",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,class\na.pn,n1\n", "line 2: 'a.pn' must be a file of the folder of images, .* did you mean 'a.png'"),
        ("image,class\nzzz,n1\n", "relative to it, such as 'a.png'"),
        ("image,class\na.png,lion\n", "line 2 must name one of the model's 4 classes; got 'lion'"),
        ("image,class\na.png,\n", "got ''"),
        ("image,class,other_class\na.png,n1,tench\n", "class and other_class must differ"),
        ("image,class\na.png,n1\na.png,n2\n", "line 3: 'a.png' must have one row"),
        ("image,label\na.png,n1\n", "it lacks class"),
        ("image,class\n", "it has no row"),
        ("", "cannot be read"),
    ],
)
def test_a_wrong_class_list_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(LidcCdamError, match=sentence):
        read_class_list(path, ["a.png", "b.png"], CLASSES)
    with pytest.raises(LidcCdamError, match="missing"):
        read_class_list(tmp_path / "absent.csv", ["a.png"], CLASSES)
