"""The commands for one network, one table, one machine; each imports what it needs when it is called."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tlkd.console import Device, app, device_of


@app.command()
def annotate(
    source: Annotated[str | None, typer.Argument(
        metavar="SOURCE", show_default=False, help="Where the images are, as data.source in a study: folder:PATH, "
        "cifar10, shapes, mnist5k, torchvision:NAME, or the path of a folder or an archive. With --study it may be "
        "left out.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The COCO file that outlines are written to after every "
                                      "change; if it is there already, work goes on in it.")] = Path("masks.coco.json"),
    split: Annotated[str | None, typer.Option(
        show_default=False, help="test, train or all (default: test, of which a study takes its masks).")] = None,
    per_class: Annotated[int | None, typer.Option(
        min=1, show_default=False, help="So many images of each class, drawn by --seed; a larger number keeps those of "
        "a smaller one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that draw.")] = 0,
    listed: Annotated[Path | None, typer.Option(
        "--list", metavar="FILE", show_default=False, help="These images: a text file with one name a line.")] = None,
    study: Annotated[Path | None, typer.Option(
        metavar="DIR", show_default=False, help="The images that this study has explained.")] = None,
    opened: Annotated[list[Path] | None, typer.Option(
        "--open", metavar="PATH", show_default=False, help="Start from outlines in another file or folder: COCO, VGG "
        "Image Annotator, labelme, CVAT, PNG masks. May be repeated.")] = None,
    root: Annotated[Path | None, typer.Option(
        metavar="DIR", show_default=False, help="Where the files of cifar10 or torchvision:NAME lie.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes one that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Outline the foreground of images by hand, on a page that this machine alone can open.

    Writes a COCO file for data.masks. Nothing leaves the machine, and nothing has to be saved by hand.

    [bold]Examples[/bold]

      tlkd annotate folder:photos --out masks.coco.json

      tlkd annotate cifar10 --per-class 10 --out masks.coco.json

      tlkd annotate --study out/mine --out masks.coco.json

      tlkd annotate photos.zip --list chosen.txt --open from-via.json --no-browser
    """
    from tlkd import annotator
    from tlkd.chosen import Choice

    annotator.annotate(Choice(source, root, split, per_class, seed, listed, study),
                       annotator.Options(out, tuple(opened or ()), port, browser))


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A finished run's folder, e.g. "
                                         "out/quickstart/runs/tl-clean-0, an export's folder, or "
                                         "packaged:NAME, torchvision:NAME or timm:NAME.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="PATH", show_default=False, help="More images, as a "
                                                      "shell makes of `--images photos/*.jpg`.")] = None,
    images: Annotated[list[Path] | None, typer.Option(
        "--images", metavar="PATH", help="An image file, or a folder of them. May be repeated.")] = None,
    background: Annotated[str | None, typer.Option(
        metavar="SOURCE", help="What images are compared with: black, a folder, archive or file of images, mnist5k, "
        "shapes, cifar10, torchvision:NAME; of a run also train, its training images "
        "(default: train for a run, black otherwise).")] = None,
    background_size: Annotated[int, typer.Option(min=1, help="How many images are drawn for the background.")] = 20,
    seed: Annotated[int | None, typer.Option(
        min=0, show_default=False, help="Seed of that draw (default: a run's data_seed, or 0).")] = None,
    weights: Annotated[str | None, typer.Option(
        metavar="NAME|PATH", help="Of a bare network: imagenet, a name of torchvision's, a checkpoint file, or none "
        "(default: imagenet).")] = None,
    input_size: Annotated[int | None, typer.Option(
        min=8, show_default=False, help="Of a bare network: side of its square input, in pixels (default: the "
        "weights' own).")] = None,
    fit: Annotated[str | None, typer.Option(help="How images are laid onto the square: crop, stretch or pad (default: "
                                            "as the run's study, or crop).")] = None,
    classes: Annotated[str, typer.Option(help="winner, top:K, all, or names or numbers with commas "
                                         "between.")] = "winner",
    explainer: Annotated[str, typer.Option(help="deep_shap, deep_lift, integrated_gradients, gradient_shap, grad_cam "
                                           "or occlusion.")] = "deep_shap",
    output: Annotated[str, typer.Option(help="What is explained: logit or probability.")] = "logit",
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Where results go (default: out/explanations/<name>).")] = None,
    device: Device = "auto",
) -> None:
    """Draw what in an image speaks for a class and what against it, in the eyes of a run or of any network.

    Leaves a picture an image, attributions.npz and attributions.csv.

    [bold]Examples[/bold]

      tlkd explain out/quickstart/runs/tl-clean-0 --images digit.png

      tlkd explain packaged:efficientnet_lite0 --images photos --background other-photos --classes top:3

      tlkd explain torchvision:resnet18 --weights my.pth --images a.jpg --images b.jpg --explainer grad_cam
    """
    chosen = device_of(device)
    from tlkd import gallery
    from tlkd.errors import RunFailed

    options = gallery.Options((*(images or ()), *(more or ())), background, background_size, seed, weights,
                              input_size, fit, explainer, output, classes, out)
    try:
        made = gallery.explain(model, options, chosen)
    except RunFailed as error:
        print(f"tlkd: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for drawn in made.drawn:
        print(f"{drawn.path}  {', '.join(f'{name} {share:.3f}' for name, share in drawn.probabilities.items())}")
    print(f"attributions: {made.path / 'attributions.npz'}\ntable:        {made.path / 'attributions.csv'}")


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's folder, e.g. "
                                       "out/quickstart/runs/tl-clean-0.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the export goes: a new folder.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    images: Annotated[list[Path] | None, typer.Option(
        "--images", metavar="PATH", help="Check on these images, files or folders, instead of the study's test images. "
        "May be repeated.")] = None,
    latency: Annotated[bool, typer.Option(help="Whether to time the student and its teacher on this "
                                          "machine.")] = True,
) -> None:
    """Export a student: weights for plain timm or torchvision, an ONNX file, a script, a model card.

    The ONNX file is checked against PyTorch on real images; the folder appears when all is well. Needs the extra
    export.

    [bold]Examples[/bold]

      tlkd export out/quickstart/runs/tl_kd-clean-0 --to student

      tlkd export out/mine/runs/tl-clean-3 --to student --force
    """
    from tlkd import exporting, wording
    from tlkd.errors import RunFailed

    try:
        made = exporting.export(run, to, force, images or (), latency)
    except RunFailed as error:
        print(f"tlkd: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    for name, size in made.sizes.items():
        print(f"{made.path / name}  {wording.size(size)}")
    check = made.check
    print(f"ONNX Runtime and PyTorch agree on {check.agreeing} of {check.images} images ({made.checked_on}); largest "
          f"difference of a logit {check.difference:.1e}, allowed {check.tolerance:.1e}")
    for line in made.warnings:
        print(f"tlkd: warning: {line}", file=sys.stderr)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A finished run's folder, an export's folder, or its "
                                         "model.onnx, which ONNX Runtime takes.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Image files, and folders of "
                                                 "them.")],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="How many classes of each image.")] = 1,
    form: Annotated[str, typer.Option("--format", help="csv or json.")] = "csv",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there (default: to the screen).")] = None,
    attributions: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Also draw there what speaks for these classes and what against them (Deep SHAP).")] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
) -> None:
    """Predict the classes of images, prepared as the study prepared its test images.

    An image that cannot be read is named at the end, and the exit code is 1; the others are predicted.

    [bold]Examples[/bold]

      tlkd predict out/quickstart/runs/tl_kd-clean-0 digit.png

      tlkd predict student photos --top 3 --attributions pictures

      tlkd predict student/model.onnx photos --format json --out predictions.json
    """
    from tlkd import predicting
    from tlkd.errors import RunFailed

    options = predicting.Options(top, form, out, attributions, device, batch_size)
    try:
        made = predicting.predict(model, images, options)
    except RunFailed as error:
        print(f"tlkd: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if out is None:
        print(made.text, end="")
    for path, reason in made.problems.items():
        print(f"tlkd: {path}: {reason}", file=sys.stderr)
    if made.problems:
        raise typer.Exit(1)


@app.command()
def regions(
    table: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="Sums of attributions inside and outside objects, "
                                          "a row an image, with the columns of the thesis's table 6.3.")],
) -> None:
    """Test a table of foreground and background contributions, TL against TL+KD, as the thesis prints it.

    Columns: class, then tl_fg_pos, tl_fg_neg, tl_bg_pos, tl_bg_neg, and the same with kd_.

    [bold]Example[/bold]

      tlkd regions table_6_3.csv
    """
    from tlkd import contributions

    print(contributions.text(contributions.read(table)), end="")


@app.command()
def models(
    name: Annotated[str, typer.Argument(metavar="NAME", help="packaged:NAME, torchvision:NAME or timm:NAME.")],
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the new head.")] = 10,
    input_size: Annotated[int, typer.Option(min=8, max=4096, help="Side of the square input, in pixels.")] = 224,
    trainable: Annotated[str, typer.Option(help="head, all or last:N.")] = "head",
) -> None:
    """Print a network's layers and its trainable, frozen and total parameters; nothing is downloaded.

    [bold]Examples[/bold]

      tlkd models packaged:efficientnet_lite0

      tlkd models torchvision:resnet18 --classes 10 --trainable last:2
    """
    from tlkd.models import describe

    found = describe(name, classes, input_size, trainable)
    rows = [("layer", "kind", "output", "parameters", "")]
    for layer in found.layers:
        output = "x".join(map(str, layer.output)) if layer.output else "-"
        part = "" if not layer.parameters else "trained" if layer.trainable else "frozen"
        rows.append((layer.name, layer.kind, output, f"{layer.parameters:,}", part))
    names, kinds, outputs, counts = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:4])
    for row in rows:
        print(f"{row[0]:{names}}  {row[1]:{kinds}}  {row[2]:>{outputs}}  {row[3]:>{counts}}  {row[4]}".rstrip())
    print()
    digits = len(f"{found.total:,}")
    for part, count in {"trainable": found.trainable, "frozen": found.frozen, "total": found.total}.items():
        print(f"{part:9}  {count:>{digits},}")


@app.command()
def doctor() -> None:
    """Show versions, devices, the cache, and which packaged weights and data are there.

    [bold]Example[/bold]

      tlkd doctor
    """
    from tlkd.doctor import examine

    for line in examine():
        print(line)
