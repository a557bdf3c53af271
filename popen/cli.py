"""The `popen` command; heavy imports wait until a verb needs them."""

import argparse
import sys
from pathlib import Path

from popen.errors import one_line_errors

TINY = Path(__file__).parent / "assets" / "popen-tiny"


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; every error a user can mend is one line on stderr and exit code 1."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.run not in (_demo, _plan):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.options = rest
    if args.run is _segment and args.question is None and args.model == str(TINY):
        parser.error("segment: the following arguments are required: question")
    try:
        with one_line_errors("popen"):
            return args.run(args) or 0
    except SystemExit as stop:
        return int(stop.code or 0)


def _segment(args: argparse.Namespace) -> None:
    from popen.data.safe_io import DataError, read_image
    from popen.medical.segmenter_folder import is_segmenter_folder

    if is_segmenter_folder(args.model):
        return _segment_medical(args)
    if args.question is None:
        raise DataError("question: none given; only a medical segmenter as --model goes without one")
    picture = read_image(args.image)
    if not args.question.strip():
        raise DataError("question: it is empty; ask for something in the picture")
    if args.ensemble is not None and args.ensemble < 1:
        raise DataError(f"--ensemble {args.ensemble}: give K >= 1 hypotheses, or leave it out for a single pass")
    from transformers.utils import logging

    from popen.lvlm.loading import load_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model, processor = load_model(args.model)
    model.eval()
    answer = model.segment([picture], [args.question], processor, ensemble=args.ensemble or 0)[0]
    print(answer.text)
    for number, target in enumerate(answer.targets, 1):
        name, share = target.phrase or "(unnamed)", target.mask.mean()
        print(f"  {number}. {name}: {share:.1%} of the picture, confidence {target.confidence:.2f}")
    if answer.incomplete:
        print(f"  {answer.incomplete} broken segmentation group(s) dropped")
    out = Path(args.output or Path(args.image).with_name(Path(args.image).stem + "-popen.png"))
    _save_overlay(picture, [target.mask for target in answer.targets], out)
    print(f"wrote {out}")


def _segment_medical(args: argparse.Namespace) -> None:
    from popen.data.safe_io import DataError, read_image

    if args.question is not None or args.ensemble is not None:
        raise DataError(f"{args.model}: a medical segmenter takes no question and no --ensemble; leave them out")
    from popen.medical.segment_file import load_segmenter, output_path, segment_file

    out = output_path(args.image, args.output)
    segmented = segment_file(args.image, *load_segmenter(args.model))
    print(*segmented.lines(), sep="\n")
    if segmented.volume is not None:
        segmented.write_labels(out)
    else:
        _save_overlay(read_image(args.image), segmented.foreground, out)
    print(f"wrote {out}")


def _save_overlay(picture, masks: list, out: Path) -> None:
    from popen.data.safe_io import DataError
    from popen.overlay import draw_masks

    try:
        draw_masks(picture, masks).save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: cannot be written ({error}); give another -o") from error


def _convert_pixellm(args: argparse.Namespace) -> None:
    from transformers.utils import logging

    from popen.lvlm.pixellm_checkpoint import convert

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    convert(args.source, args.destination, args.vision_tower)
    print(f"wrote {args.destination}")


def _demo(args: argparse.Namespace) -> int:
    import subprocess

    root = Path(__file__).parent.parent
    script = root / "recipes" / "path.py"
    if not script.is_file():
        raise FileNotFoundError(
            "popen demo runs the recipes of a source checkout and there is none here; clone popen and run `make demo`"
        )
    return subprocess.call([sys.executable, str(script), "--config", "recipes/demo.yaml", *args.options], cwd=root)


def _data_check(args: argparse.Namespace) -> int:
    from popen.data.medical_layout import is_medical

    if is_medical(args.path):
        from popen.data.medical_audit import audit_medical

        audit = audit_medical(args.path, args.split, args.patient)
    else:
        from popen.data.audit import audit_dataset

        audit = audit_dataset(args.path, args.split)
    print(*audit.lines, sep="\n", end="\n" if audit.lines else "")
    for split, counts in audit.counts.items():
        print(*counts.lines(split), sep="\n")
    for name, found in (("errors", audit.errors), ("warnings", audit.warnings)):
        sorts = ", ".join(f"{sort} {count}" for sort, count in sorted(found.items()))
        print(f"{found.total()} {name}{f' ({sorts})' if sorts else ''}")
    return 1 if audit.errors else 0


def _plan(args: argparse.Namespace) -> None:
    from popen.data.safe_io import DataError

    if not args.gpu_memory > 0:
        raise DataError(f"--gpu-memory {args.gpu_memory}: give GiB, more than 0")
    from transformers.utils import logging

    from popen.training.launch import Launch, read_launch
    from popen.training.memory import GIB
    from popen.training.plan import plan
    from popen.training.planned_run import PlannedRun

    logging.set_verbosity_error()
    launch = Launch() if args.accelerate is None else read_launch(args.accelerate)
    run = PlannedRun.read(args.config, args.options)
    found = plan(run, launch, int(args.gpu_memory * GIB))
    print(f"{args.config}: {run.kind}, {run.features(launch)}")
    print(*found.lines(), sep="\n")


def _push(args: argparse.Namespace) -> None:
    from popen.hub.cards import CardFacts
    from popen.hub.push import push

    facts = CardFacts.read(
        config=args.config, summary=args.summary, base_model=args.base_model, data=args.data,
        command=args.command, licence=args.license,
    )  # fmt: skip
    pushed = push(
        args.folder, args.repository, private=args.private, revision=args.revision,
        remote_code=args.export_remote_code, facts=facts,
    )  # fmt: skip
    print(f"pushed to {pushed.url}")
    print(f"README.md: {pushed.card}")
    if pushed.left_out:
        print(f"left at home: {', '.join(pushed.left_out)}")


def _env(args: argparse.Namespace) -> None:
    import importlib.metadata
    import os
    import platform

    import torch

    from popen import __version__

    print(f"popen {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in ("torch", "torchvision", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"devices: {', '.join(devices) or 'CPU only'}; {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"shipped model: {TINY if TINY.is_dir() else 'missing'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="popen", description="Segmentation models tuned with preferences.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    segment = verbs.add_parser(
        "segment", help="answer a question about a picture in words and masks, or segment a scan"
    )
    segment.add_argument("image", help="a picture; with a medical segmenter also a volume in NIfTI")
    segment.add_argument("question", nargs="?", help="none with a medical segmenter")
    segment.add_argument("-o", "--output", help="overlay or NIfTI labels to write; beside the picture by default")
    segment.add_argument("--ensemble", type=int, metavar="K", help="hypotheses of the preference ensemble")
    segment.add_argument(
        "--model", default=str(TINY), help="model folder or Hub id; the shipped popen-tiny by default"
    )
    segment.set_defaults(run=_segment)

    pixellm = verbs.add_parser("convert-pixellm", help="turn a released PixelLM checkpoint into a popen model folder")
    pixellm.add_argument("source", help="folder of the checkpoint, with its config.json or an hf_model inside")
    pixellm.add_argument("destination", help="new folder to write")
    pixellm.add_argument(
        "--vision-tower", metavar="CLIP", default="openai/clip-vit-large-patch14-336",
        help="the CLIP it was trained on, a folder or Hub id; %(default)s by default",
    )  # fmt: skip
    pixellm.set_defaults(run=_convert_pixellm)

    demo = verbs.add_parser("demo", help="mine, tune, ensemble and evaluate popen-tiny, and write a report")
    demo.set_defaults(run=_demo)

    data = verbs.add_parser("data", help="look after a data set in popen's schema, or of medical pictures")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check every row or file, and count what there is, before training")
    check.add_argument("path", help="folder of the data set")
    check.add_argument("--split", action="append", help="only this split; may be given again; all by default")
    check.add_argument(
        "--patient", metavar="REGEX",
        help="of medical pictures: the one group is the patient in a file's name; each case is one by default",
    )  # fmt: skip
    check.set_defaults(run=_data_check)

    plan = verbs.add_parser(
        "plan", help="what a recipe will take of each GPU, and the largest micro-batch that fits; loads no weights",
        epilog="Further options override keys of the YAML, as they do for the recipe.",
    )  # fmt: skip
    plan.add_argument("--config", required=True, metavar="YAML", help="of recipes/sft.py or recipes/preference.py")
    plan.add_argument("--gpu-memory", type=float, default=80.0, metavar="GIB", help="of a GPU; %(default)s by default")
    plan.add_argument("--accelerate", metavar="FILE", help="of accelerate launch; one process without")
    plan.set_defaults(run=_plan)

    push = verbs.add_parser("push", help="share a model, an adapter, a preference set or a data set on the Hub")
    push.add_argument("folder", metavar="DIR")
    push.add_argument("repository", metavar="ORG/NAME")
    push.add_argument("--private", action="store_true", help="only its owner sees the repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to, made if need be; main by default")
    push.add_argument("--export-remote-code", action="store_true", help="so that the model loads without popen, too")
    push.add_argument("--base-model", metavar="ID", help="what it was tuned from, on the Hub: for card and adapter")
    push.add_argument("--data", metavar="ID", help="for the card: the data set, a Hub id or words")
    push.add_argument("--command", metavar="LINE", help="for the card: the command that trained or mined it")
    push.add_argument("--config", metavar="FILE", help="for the card: the recipe's YAML")
    push.add_argument("--summary", metavar="FILE", help="for the card: a summary.json of eval.segmentation")
    push.add_argument("--license", metavar="ID", help="for the card, as apache-2.0")
    push.set_defaults(run=_push)

    env = verbs.add_parser("env", help="print versions and devices, for bug reports")
    env.set_defaults(run=_env)
    return parser


if __name__ == "__main__":
    sys.exit(main())
