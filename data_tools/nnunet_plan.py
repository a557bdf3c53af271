"""Write a recipe for `recipes/medical.py` from a plan of nnU-Net and one of the shipped recipes.

    python data_tools/nnunet_plan.py nnUNet_preprocessed/DATASET/nnUNetPlans.json nnUNet_raw/DATASET \\
        --configuration 3d_fullres --recipe recipes/medical/rn_dpo_unet3d.yaml --out my.yaml

The plan decides network, patch size, spacing, batch and activation; everything else is the recipe's.
"""

import argparse
import sys
from pathlib import Path

import yaml

from popen.data.nnunet_plan import read_nnunet_plan
from popen.data.safe_io import DataError, StorageError, read_text, write_bytes


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path, metavar="PLANS", help="nnUNetPlans.json, or that of a residual encoder")
    parser.add_argument("raw", type=Path, metavar="RAW", help="the data set's folder in nnUNet_raw")
    parser.add_argument("--configuration", default="3d_fullres", help="of the plans, volumes only")
    parser.add_argument("--recipe", type=Path, required=True, help="one of recipes/medical")
    parser.add_argument("--out", type=Path, required=True, help="the recipe that is written")
    args = parser.parse_args(argv)
    try:
        settings = read_nnunet_plan(args.plans, args.configuration, args.raw)
        recipe = yaml.safe_load(read_text(args.recipe))
        if not isinstance(recipe, dict) or "network" not in recipe:
            raise DataError(f"{args.recipe}: no network in it; take a recipe of recipes/medical")
        written = recipe | settings | {"output_dir": f"runs/medical/{args.out.stem}"}
        lines = yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=10_000)
        write_bytes(args.out, f"# {args.recipe.name} with {args.configuration} of {args.plans.name}\n{lines}".encode())
    except (DataError, StorageError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.out}: {settings['network']}, patch {settings['patch_size']}, spacing {settings['spacing']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
