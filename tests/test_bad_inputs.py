"""A catalogue of bad inputs, each through the real command line: exit code 2, its one line, and nothing written."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bad_workplace
from tlkd import cli

SHORT = {"SET ": "run small.yaml --set ", "FOLDER ": "run small.yaml --set data.source=folder:",
         "MASKS ": "run small.yaml --set explanation.background.size=2 --set data.masks=",
         "WEIGHTS ": "run small.yaml --set student.weights="}

BAD = (  # the command, and what it is answered with: {here} is the folder it runs in, ... anything
    ('run nowhere.yaml',
     'nowhere.yaml: neither a file nor a packaged study; packaged: cifar10, cifar10-difficulties, '
     'cifar10-finetune, quickstart, shapes, thesis'),
    ('run quikstart',
     "quikstart: neither a file nor a packaged study; did you mean 'quickstart'?; packaged: cifar10, "
     'cifar10-difficulties, cifar10-finetune, quickstart, shapes, thesis'),
    ('run images',
     "images: is a folder, not a study's file; packaged: cifar10, cifar10-difficulties, cifar10-finetune, "
     'quickstart, shapes, thesis'),
    ('run empty.yaml', 'empty.yaml: a study is a mapping of keys; found nothing'),
    ('run list.yaml', 'list.yaml: a study is a mapping of keys; found a list'),
    ('run bytes.yaml',
     "bytes.yaml: cannot be read as text: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ('run open.yaml', "open.yaml, line 2: not valid YAML: expected the node content, but found '<stream end>'"),
    ('run twice.yaml', "twice.yaml, line 2: not valid YAML: the key 'name' stands twice"),
    ('run python.yaml',
     'python.yaml, line 1: not valid YAML: could not determine a constructor for the tag '
     "'tag:yaml.org,2002:python/object/apply:os.system'"),
    ('run itself.yaml', 'itself.yaml, line 1: not valid YAML: found unconstructable recursive node'),
    ('run deep.yaml', 'deep.yaml, line 1: not valid YAML: nested more than 100 deep'),
    ('run bits.yaml', 'bits.yaml: not valid YAML: it holds a whole number of 1,200 bits; allowed: 1,024'),
    ('run sixty.yaml', 'sixty.yaml, line 1: not valid YAML: a number of 601 characters; allowed: 400'),
    ('run half.yaml', "half.yaml: not valid YAML: it holds half a character: '\\ud800'"),
    ('SET data.shapes.train_per_class=1000000000000',
     'small.yaml: data.shapes.train_per_class: found 1000000000000; allowed: less than or equal to 100000'),
    ('run escape.yaml',
     'escape.yaml: \\x1b[31mred: unknown key; allowed: name, data, student, teachers, arms, conditions, exclude, '
     'training, selection, seeds, bank, robustness, explanation, verdict, footnotes'),
    ('run laughs.yaml', 'laughs.yaml: not valid YAML: it holds more than 100,000 values, aliases written out'),
    ('run large.yaml', "large.yaml: is 2,097,153 bytes long; a study's file may have 2,097,152"),
    ('SET training.epochs=0', 'small.yaml: training.epochs: found 0; allowed: greater than or equal to 1'),
    ('SET training.epochs=.nan', 'small.yaml: training.epochs: found nan; expected a whole number'),
    ('SET training.epochs=1e3', 'small.yaml: training.epochs: found 1000.0; expected a whole number'),
    ('SET training.learning_rate=-1', 'small.yaml: training.learning_rate: found -1; allowed: greater than 0'),
    ('SET training.learning_rate=.inf', 'small.yaml: training.learning_rate: found inf; allowed: a finite number'),
    ('SET seeds=[]', 'small.yaml: seeds: found []; expected at least one item'),
    ('SET seeds=[1,1]', 'small.yaml: seeds: found 1 more than once; each may stand there once'),
    ('SET seeds=3', 'small.yaml: seeds: found 3; expected a list, e.g. [a, b]'),
    ('SET name=../../etc', "small.yaml: name: found '../../etc'; allowed: letters, digits, and _ . - after the first"),
    ('SET trainin.epochs=3',
     "small.yaml: trainin: unknown key; did you mean 'training'?; allowed: name, data, student, teachers, arms, "
     'conditions, exclude, training, selection, seeds, bank, robustness, explanation, verdict, footnotes'),
    ('SET training.epoch=3',
     "small.yaml: training.epoch: unknown key; did you mean 'epochs'?; allowed: epochs, batch_size, optimiser, "
     'learning_rate, momentum, weight_decay, schedule, plateau_patience, plateau_factor, early_stopping, '
     'report_epoch, precision, threads'),
    ('SET epochs', '--set epochs: expected KEY.PATH=VALUE, e.g. training.epochs=5'),
    ('SET arms.7.kind=tl', "--set arms.7.kind=tl: arms has no item '7'; allowed: tl, kd"),
    ('SET arms.kd.teacher=nobody', "small.yaml: arms.kd.teacher: no teacher is called 'nobody'; allowed: big"),
    ('SET arms.kd.temperature=0', 'small.yaml: arms.kd.temperature: found 0; allowed: greater than 0'),
    ('SET arms.tl.temperature=2',
     'small.yaml: arms.tl: an arm of kind tl has no temperature; found temperature: 2.0; allowed: none of '
     'teacher, soft_weight, temperature'),
    ('SET student.input_size=-1', 'small.yaml: student.input_size: found -1; allowed: greater than or equal to 8'),
    ('SET student.input_size=1000000000',
     'small.yaml: student.input_size: found 1000000000; allowed: less than or equal to 4096'),
    ('SET data.augment=[spin]',
     "small.yaml: data.augment: found ['spin']; 'spin' is not an augmentation; allowed: hflip, crop:K"),
    ('SET data.dev_fraction=1', 'small.yaml: data.dev_fraction: found 1; allowed: less than 1'),
    ('SET "data.normalise={mean: [0],sd: [1]}"',
     'small.yaml: data.normalise.mean: found [0]; expected 3 items (and 1 more)'),
    ('SET "conditions=[{name: few,train_fraction: 0}]"',
     'small.yaml: conditions.few.train_fraction: found 0; allowed: greater than 0'),
    ('SET "conditions=[{name: noise,label_noise: 2}]"',
     'small.yaml: conditions.noise.label_noise: found 2; allowed: less than or equal to 1'),
    ('SET "conditions=[{name: rain,corruption: {kind: rain}}]"',
     "small.yaml: conditions.rain.corruption.kind: found 'rain'; allowed: 'center_black', 'border_black', "
     "'quarter_black', 'gaussian_blur', 'gaussian_noise', 'low_pass', 'band_pass', 'high_pass', 'contrast', "
     "'brightness', 'pixelate' or 'jpeg'"),
    ('SET "grid={conditions.nobody.train_fraction: [0.5]}"',
     "small.yaml: grid.conditions.nobody.train_fraction: no item of conditions is called 'nobody'; allowed: clean"),
    ('SET "grid={conditions.clean.train_fraction: 5}"',
     'small.yaml: grid.conditions.clean.train_fraction: found 5; expected a list of values, e.g. [5]'),
    ('SET "exclude=[{arm: nobody}]"',
     "small.yaml: exclude.0.arm: unknown key; did you mean 'arms'?; allowed: arms, conditions, seeds"),
    ('SET "explanation={images: -1}"',
     'small.yaml: explanation.images: found -1; allowed: masks, null, or a number of images a class'),
    ('SET data.source=photos',
     "small.yaml: data.source: found 'photos'; allowed: mnist5k, shapes, cifar10, torchvision:NAME, folder:PATH"),
    ('FOLDER nowhere',
     'data.source: folder:nowhere: there is no {here}/nowhere; allowed: a folder, .tar, .tar.gz, .tgz, .zip'),
    ('FOLDER ~nobody_here/x',
     "data.source: found '~nobody_here/x'; nobody's home folder is known by that name; allowed: a path, in which "
     '~ is your own home'),
    ('FOLDER empty',
     'data.source: folder:empty: empty holds no class folders; allowed: train/<class>/* and test/<class>/*, or '
     '<class>/*'),
    ('FOLDER no_images',
     "data.source: folder:no_images: no_images: the class folder 'a' is empty; put images there, or remove it"),
    ('FOLDER one',
     "data.source: folder:one: one/train holds one class only, 'disc'; a study needs two or more class folders"),
    ('FOLDER odd',
     'data.source: folder:odd: train/ and test/ do not hold the same class folders: train/frame, test/framed '
     'without a counterpart'),
    ('FOLDER broken',
     'data.source: folder:broken: train/disc/0.png: not an image, or its header is damaged; 1 of 12 images cannot '
     'be used; mend or remove them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER hollow',
     'data.source: folder:hollow: train/disc/0.png: the file is empty (0 bytes); 1 of 12 images cannot be used; '
     'mend or remove them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER huge',
     'data.source: folder:huge: train/disc/0.png: more than 178,956,970 pixels: it looks like a decompression '
     'bomb; 1 of 12 images cannot be used; mend or remove them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER postscript',
     'data.source: folder:postscript: train/disc/0.png: not an image, or its header is damaged; 1 of 12 images '
     'cannot be used; mend or remove them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER pipe',
     'data.source: folder:pipe: train/disc/0.png: no plain file; 1 of 12 images cannot be used; mend or remove '
     'them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER loop',
     "data.source: folder:loop: loop/train: 'disc/again/disc' holds itself, or is nested more than 100 folders "
     'deep; remove the link'),
    ('FOLDER dangling',
     'data.source: folder:dangling: train/disc/0.png: the file is gone; 1 of 12 images cannot be used; mend or '
     'remove them, or leave them out with data.on_bad_image: skip'),
    ('FOLDER control',
     "data.source: folder:control: the file name 'train/disc/\\x1b[31m\\n.png' is not plain text; rename it"),
    ('SET data.source=torchvision:os',
     "data.source: torchvision:os: 'os' is not a data set of torchvision; did you mean 'EuroSAT'?; allowed: "
     'CIFAR10, CIFAR100, CLEVRClassification, Caltech101, Caltech256, Country211, DTD, EMNIST, EuroSAT, FER2013, '
     'FGVCAircraft, FashionMNIST, Flowers102, Food101, GTSRB, ImageNet, Imagenette, KMN...'),
    ('SET data.source=torchvision:VOCDetection',
     "data.source: torchvision:VOCDetection: 'VOCDetection' is not one of its classification data sets; allowed: "
     'CIFAR10, CIFAR100, CLEVRClassification, Caltech101, Caltech256, Country211, DTD, EMNIST, EuroSAT, FER2013, '
     'FGVCAircraft, FashionMNIST, Flowers102, Food101, GTSRB, ImageNet, Imagenette...'),
    ('FOLDER text.tar',
     'data.source: folder:text.tar: text.tar is neither a folder nor an archive that can be read; allowed: a '
     'folder, .tar, .tar.gz, .tgz, .zip'),
    ('FOLDER cut.tar.gz',
     'data.source: folder:cut.tar.gz: the archive is damaged: Compressed file ended before the end-of-stream '
     'marker was reached'),
    ('FOLDER out.tar',
     "data.source: folder:out.tar: unsafe archive, not unpacked: its member '../out.png' points outside of it or "
     'is no plain file'),
    ('FOLDER absolute.tar',
     "data.source: folder:absolute.tar: unsafe archive, not unpacked: its member '/tmp/out.png' points outside of "
     'it or is no plain file'),
    ('FOLDER windows.tar',
     "data.source: folder:windows.tar: unsafe archive, not unpacked: its member 'C:\\\\out.png' points outside of "
     'it or is no plain file'),
    ('FOLDER link.tar',
     "data.source: folder:link.tar: unsafe archive, not unpacked: its member 'train' points outside of it or is "
     'no plain file'),
    ('FOLDER hard.tar',
     "data.source: folder:hard.tar: unsafe archive, not unpacked: its member 'train/a/1.png' points outside of it "
     'or is no plain file'),
    ('FOLDER circle.tar',
     "data.source: folder:circle.tar: unsafe archive, not unpacked: its member 'a' is a link to no file in it; "
     'pack the files themselves (tar -h)'),
    ('FOLDER pipe.tar',
     "data.source: folder:pipe.tar: unsafe archive, not unpacked: its member 'train/a/1.png' points outside of it "
     'or is no plain file'),
    ('FOLDER device.tar',
     "data.source: folder:device.tar: unsafe archive, not unpacked: its member 'train/a/1.png' points outside of "
     'it or is no plain file'),
    ('FOLDER both.tar',
     "data.source: folder:both.tar: unsafe archive, not unpacked: its member 'train/a/1.png' is a file and a "
     'folder'),
    ('FOLDER twice.tar',
     "data.source: folder:twice.tar: unsafe archive, not unpacked: its member 'train/a/1.png' comes twice"),
    ('FOLDER negative.tar',
     'data.source: folder:negative.tar: unsafe archive, not unpacked: one of its members is less than nothing long'),
    ('FOLDER escape.tar',
     "data.source: folder:escape.tar: unsafe archive, not unpacked: its member '../\\x1b[2J\\nred' points outside "
     'of it or is no plain file'),
    ('FOLDER bomb.zip',
     'data.source: folder:bomb.zip: unsafe archive, not unpacked: it unpacks to more than 1,073,741,824 bytes, '
     '100 times its own length'),
    ('FOLDER bomb.tar',
     'data.source: folder:bomb.tar: unsafe archive, not unpacked: it unpacks to more than 1,073,741,824 bytes, '
     '100 times its own length'),
    ('FOLDER out.zip',
     "data.source: folder:out.zip: unsafe archive, not unpacked: its member 'a/..\\\\..\\\\out.png' points outside of "
     'it or is no plain file'),
    ('FOLDER locked.zip',
     "data.source: folder:locked.zip: the archive is damaged: File <ZipInfo filename='a/1.png' "
     "filemode='?rw-------' file_size=1> is encrypted, password required for extraction"),
    ('MASKS nowhere.json',
     'data.masks: nowhere.json: there is no {here}/nowhere.json; allowed: strokes (mnist5k), exact (shapes), a '
     "COCO, VIA or labelme JSON file, a folder of PNG masks or of labelme's JSON files"),
    ('MASKS other.json',
     "data.masks: other.json: it is no annotation file that is known here, its keys being 'hello'; allowed: COCO "
     "(images, annotations, categories), the VGG Image Annotator's project or annotations (filename, regions), "
     "labelme's (imagePath, shapes)"),
    ('MASKS list.json',
     'data.masks: list.json: it holds a list of 0; allowed: COCO (images, annotations, categories), the VGG Image '
     "Annotator's project or annotations (filename, regions), labelme's (imagePath, shapes)"),
    ('MASKS none.json', 'data.masks: none.json: none of its 1 image is annotated; draw outlines first'),
    ('MASKS nan.json',
     'data.masks: nan.json: annotation 0 of test/disc/0.png: a coordinate is nan; allowed: a number of pixels'),
    ('MASKS far.json',
     'data.masks: far.json: annotation 0 of test/disc/0.png: a coordinate is 1e+300; allowed: a number of pixels'),
    ('MASKS outside.json',
     'data.masks: outside.json: annotation 0 of test/disc/0.png: a polygon from (100, 100) to (120, 120) lies '
     'outside its image of 32 x 32 pixels; move or remove it'),
    ('MASKS odd.json',
     'data.masks: odd.json: annotation 0 of test/disc/0.png: a polygon of 7 coordinates, an odd number; each '
     'point has x and y'),
    ('MASKS two.json',
     'data.masks: two.json: annotation 0 of test/disc/0.png: a polygon of 2 points; draw 3 or more, or remove it'),
    ('MASKS box.json',
     'data.masks: box.json: annotation 0 of test/disc/0.png: its segmentation is missing; draw its outline (a box '
     'is none), or remove it'),
    ('MASKS bomb.json',
     'data.masks: bomb.json: annotation 0 of test/disc/0.png: 1000000 x 1000000 pixels are more than the '
     '178,956,970 that are allowed'),
    ('MASKS runs.json',
     'data.masks: runs.json: annotation 0 of test/disc/0.png: its counts are a list of 2; allowed: whole numbers, '
     "or COCO's compressed text"),
    ('MASKS negative.json',
     'data.masks: negative.json: annotation 0 of test/disc/0.png: its counts are of 1024 pixels (the least is '
     '-1), its size of 32 x 32 has 1024; export it again'),
    ('MASKS coded.json',
     "data.masks: coded.json: annotation 0 of test/disc/0.png: its counts: 'éé' is no compressed text of counts"),
    ('MASKS nobody.json', 'data.masks: nobody.json: annotation 0: its image_id 7 is the id of no image in the file'),
    ('MASKS category.json',
     "data.masks: category.json: annotation 0 of test/disc/0.png: its category_id 7 is not among the file's "
     "categories; allowed: '1', null"),
    ('MASKS twice.json',
     "data.masks: twice.json: the image id 1 is there twice, for 'a' and for 'b'; give each image an id of its own"),
    ('MASKS strangers.json',
     "data.masks: strangers.json: none of its 1 annotated image is in the data source: it has 'x/y.png', the "
     "source 'train/disc/0.png'; name images as the source does"),
    ('MASKS via.json',
     "data.masks: via.json: region 0 of 0.png: its shape is 'point'; allowed: polygon, polyline, rect, circle, "
     'ellipse'),
    ('MASKS labelme.json',
     "data.masks: labelme.json: shape 0 of 0.png: its shape_type is 'line'; allowed: polygon, rectangle, circle"),
    ('MASKS control.json', "data.masks: control.json: image 1: its file_name is '\\x1b[31m'; allowed: a text"),
    ('MASKS deep.json',
     'data.masks: deep.json: its JSON is nested too deeply; allowed: COCO (images, annotations, categories), the '
     "VGG Image Annotator's project or annotations (filename, regions), labelme's (imagePath, shapes)"),
    ('MASKS cut.json',
     'data.masks: cut.json: it is not JSON (Expecting value: line 1 column 13 (char 12)); allowed: COCO (images, '
     "annotations, categories), the VGG Image Annotator's project or annotations (filename, regions), labelme's "
     '(imagePath, shapes)'),
    ('MASKS pipe.json',
     'data.masks: pipe.json: it is no plain file; allowed: strokes (mnist5k), exact (shapes), a COCO, VIA or '
     "labelme JSON file, a folder of PNG masks or of labelme's JSON files"),
    ('MASKS folder:painted_huge',
     'data.masks: painted_huge: test/disc/0.png: more than 178,956,970 pixels: it looks like a decompression bomb'),
    ('MASKS folder:painted_cut', 'data.masks: painted_cut: test/disc/0.png: not an image, or its header is damaged'),
    ('MASKS folder:painted_small',
     'data.masks: painted_small: test/disc/0.png: it was annotated at 7 x 19 pixels, the image has 32 x 32; '
     'annotate the image itself'),
    ('MASKS folder:empty', 'data.masks: empty: there is no PNG or JSON file in this folder; save masks as PNG'),
    ('MASKS strokes',
     "small.yaml: data.masks: 'strokes' are of another source than folder:images; allowed: a COCO or VIA file, a "
     'folder of PNG masks, null'),
    ('SET student.model=timm:nothing_at_all',
     "student.model: found 'timm:nothing_at_all'; timm has no classifier of that name that can be split; did you "
     "mean 'twins_svt_small'?"),
    ('SET student.model=resnet18',
     "small.yaml: student.model: found 'resnet18'; allowed: packaged:NAME, torchvision:NAME, timm:NAME"),
    ('WEIGHTS nowhere.pth', "student.weights: found 'nowhere.pth'; there is no such file"),
    ('WEIGHTS ~nobody_here/x.pth',
     "student.weights: found '~nobody_here/x.pth'; nobody's home folder is known by that name; allowed: a path, "
     'in which ~ is your own home'),
    ('WEIGHTS hostile.pth',
     "student.weights: found 'hostile.pth'; it holds something other than tensors, and tlkd unpickles nothing; "
     'allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS hostile.pt',
     "student.weights: found 'hostile.pt'; it holds something other than tensors, and tlkd unpickles nothing; "
     'allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS hostile.bin',
     "student.weights: found 'hostile.bin'; it holds something other than tensors, and tlkd unpickles nothing; "
     'allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS hostile.safetensors',
     "student.weights: found 'hostile.safetensors'; it cannot be read as tensors (Error while deserializing "
     'header: header too large); allowed: a .safetensors file, or what torch.save(network.state_dict(), file) '
     'wrote'),
    ('WEIGHTS hostile.npz',
     "student.weights: found 'hostile.npz'; it holds something other than tensors, and tlkd unpickles nothing; "
     'allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS zipped.pth',
     "student.weights: found 'zipped.pth'; it holds something other than tensors, and tlkd unpickles nothing; "
     'allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS overlap.safetensors',
     "student.weights: found 'overlap.safetensors'; it cannot be read as tensors (Error while deserializing "
     'header: invalid offset for tensor `v`); allowed: a .safetensors file, or what '
     'torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS long.safetensors',
     "student.weights: found 'long.safetensors'; it cannot be read as tensors (Error while deserializing header: "
     'header too large); allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS cut.safetensors',
     "student.weights: found 'cut.safetensors'; it cannot be read as tensors (Error while deserializing header: "
     'invalid header length); allowed: a .safetensors file, or what torch.save(network.state_dict(), file) wrote'),
    ('WEIGHTS strange.safetensors',
     'student.weights: strange.safetensors do not fit the network; tensors: 75 missing (conv1.0.weight, '
     'conv1.1.weight, conv1.1.bias, ...)'),
    ('SET student.trainable=last:99',
     "student.trainable: found 'last:99'; timm:test_resnet has 10 units below its head; allowed: head, all, "
     'last:1 to last:10'),
    ('run small.yaml --jobs 0',
     "Invalid value for '--jobs': Input should be greater than or equal to 1 (see `tlkd run --help`)"),
    ('run small.yaml --engine slurm',
     "--engine: found 'slurm'; allowed: local, ray (a cluster started here), ray:HOST:PORT"),
    ('run small.yaml --track excel',
     "--track: found 'excel'; allowed: mlflow, mlflow:http://HOST:PORT, mlflow:sqlite:///PATH.db (or another "
     "database's address), wandb, wandb:offline, wandb:online"),
    ('run small.yaml --device tpu', "--device: found 'tpu'; allowed: auto, cpu, cuda"),
    ('run small.yaml --out taken', 'taken: is not empty and holds no study; choose another --out'),
    ('run small.yaml --gpus-per-job -1',
     "Invalid value for '--gpus-per-job': Input should be greater than or equal to 0 (see `tlkd run --help`)"),
    ('plan small.yaml --set data.source=folder:nowhere',
     'data.source: folder:nowhere: there is no {here}/nowhere; allowed: a folder, .tar, .tar.gz, .tgz, .zip'),
    ('tune small.yaml --trials 0',
     "Invalid value for '--trials': Input should be greater than or equal to 1 (see `tlkd tune --help`)"),
    ('tune small.yaml --trials 2 --search training.nonsense=1,2 --set selection=dev --set data.dev_fraction=0.25',
     "--search training.nonsense=1,2: no arm that is tuned has a key 'training.nonsense'; did you mean "
     "'training.schedule' or 'training.momentum' or 'training.epochs'?; allowed: training.epochs, ..."),
    ('tune small.yaml --trials 2 --arms nobody --set selection=dev --set data.dev_fraction=0.25',
     "--arms: found 'nobody'; run under clean: tl, kd"),
    ('tune small.yaml --trials 2 --condition nobody --set selection=dev --set data.dev_fraction=0.25',
     "--condition: found 'nobody'; allowed: clean"),
    ('tune small.yaml --trials 2',
     "selection: found 'test', and tuning must not look at the test split; allowed: dev, with data.dev_fraction "
     'above 0'),
    ('status nowhere', 'nowhere: no study lies here (there is no study.yaml)'),
    ('status taken', 'taken: no study lies here (there is no study.yaml)'),
    ('verify taken', 'taken: no study lies here (there is no study.yaml)'),
    ('watch nowhere --once', 'nowhere: no study lies here (there is no study.yaml)'),
    ('compare whole', "tlkd compare: found one folder, whole; name at least two studies' folders"),
    ('compare whole nowhere --out both', 'nowhere: no study lies here (there is no study.yaml)'),
    ('compare whole other --label a --out both',
     '--label: found 1 for 2 folders; give one for each, in their order, or none'),
    ('compare whole other --out taken', '--out taken: is not empty and holds no comparison; choose another folder'),
    ('annotate folder:nowhere --out m.json --no-browser',
     'data.source: folder:nowhere: there is no {here}/nowhere; allowed: a folder, .tar, .tar.gz, .tgz, .zip'),
    ('annotate images --out taken --no-browser', '--out: taken: is a folder; name a file, masks.coco.json for example'),
    ('annotate images --out m.json --split nobody --no-browser', "--split: found 'nobody'; allowed: test, train, all"),
    ('annotate images --out m.json --open cut.json --no-browser',
     '--open: cut.json: it is not JSON (Expecting value: line 1 column 13 (char 12)); allowed: COCO (images, '
     "annotations, categories), the VGG Image Annotator's project or annotations (filename, regions), labelme's "
     '(imagePath, shapes)'),
    ('annotate images --out m.json --port 99999 --no-browser',
     "Invalid value for '--port': Input should be less than or equal to 65535 (see `tlkd annotate --help`)"),
    ('explain nowhere images/test/disc/0.png',
     "nowhere: neither a run's folder nor a network; allowed: STUDY/runs/RUN, an export's folder, packaged:NAME, "
     'torchvision:NAME, timm:NAME (it stands before --images)'),
    ('explain timm:test_resnet images/test/disc/0.png --explainer magic',
     "--explainer: found 'magic'; allowed: deep_shap, deep_lift, integrated_gradients, gradient_shap, grad_cam, "
     'occlusion'),
    ('explain timm:test_resnet nowhere.png',
     '--images: there is no nowhere.png; allowed: image files, and folders of them'),
    ('explain timm:test_resnet images/test/disc/0.png --classes top:0 --weights none',
     "--classes: found 'top:0'; allowed: top:1 to top:1000"),
    ('export nowhere --to exported', "nowhere: is no run's folder; allowed: STUDY/runs/RUN of a finished run"),
    ('export whole/runs/tl-clean-0 --to taken',
     "--to taken: is not empty and is no export of tlkd's; choose another folder"),
    ('predict nowhere images',
     "nowhere: is no network to predict with; allowed: STUDY/runs/RUN of a finished run, an export's folder, its "
     'model.onnx'),
    ('predict hostile.onnx images', 'config.json: is not there; it belongs beside model.onnx'),
    ('predict whole/runs/tl-clean-0 images --format xml', "--format: found 'xml'; allowed: csv, json"),
    ('predict whole/runs/tl-clean-0 nowhere.png',
     'IMAGE_OR_FOLDER: there is no nowhere.png; allowed: image files, and folders of them'),
    ('regions nowhere.csv', 'nowhere.csv: no such file'),
    ('regions table.csv',
     'table.csv: lacks the columns class, tl_fg_pos, tl_fg_neg, tl_bg_pos, tl_bg_neg, kd_fg_pos, kd_fg_neg, '
     'kd_bg_pos, kd_bg_neg; expected class, tl_fg_pos, tl_fg_neg, tl_bg_pos, tl_bg_neg, kd_fg_pos, kd_fg_neg, '
     'kd_bg_pos, kd_bg_neg'),
    ('models timm:nothing',
     "model: found 'timm:nothing'; timm has no classifier of that name that can be split; 1371 names are known, "
     'such as aimv2_1b_patch14_224, aimv2_1b_patch14_336, aimv2_1b_patch14_448'),
    ('models resnet18', "model: found 'resnet18'; allowed: packaged:NAME, torchvision:NAME, timm:NAME"),
    ('models timm:resnet18 --trainable some', "trainable: found 'some'; allowed: head, all, last:N"),
    ('studies nothing',
     'nothing: no packaged study is called so; allowed: cifar10, cifar10-difficulties, cifar10-finetune, '
     'quickstart, shapes, thesis'),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All the files that the commands name, and a cache beside them."""
    here = tmp_path_factory.mktemp("bad") / "here"
    here.mkdir()
    bad_workplace.lay_out(here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("TLKD_CACHE", str(here.parent / "cache"))
        yield here


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize(("command", "line"), BAD, ids=[command[:60] for command, _ in BAD])
def test_it_is_refused_in_its_one_line(command: str, line: str, workplace: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:
    for short, long in SHORT.items():
        command = re.sub(f"^{short}", long, command)
    monkeypatch.setattr(sys, "argv", ["tlkd", *shlex.split(command)])
    before = contents(workplace)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.isprintable() or err[:-1].isprintable()
    expected = re.escape(f"tlkd: {line}\n".replace("{here}", str(workplace))).replace(re.escape("..."), ".*")
    assert re.fullmatch(expected, err), err
    assert contents(workplace) == before
    assert not (workplace / "pwned").exists()
    left = workplace.parent / "cache" / "archives"
    assert not left.is_dir() or [each.name for each in left.iterdir()] in ([], [".locks"])


def test_the_catalogue_has_no_line_twice() -> None:
    assert len({command for command, _ in BAD}) == len(BAD) >= 60
