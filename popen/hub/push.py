"""Uploads a model, an adapter, a preference set or a data set to the Hub; what breaks off can be run again."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from popen.data.safe_io import DataError, read_json, write_json
from popen.hub.card_facts import hub_id
from popen.hub.cards import CardFacts, card, check_card
from popen.hub.folder import SharedFolder, recognise

CARD, ADAPTER, BASE = "README.md", "adapter_config.json", "base_model_name_or_path"


@dataclass(frozen=True)
class Pushed:
    """Where the files are now, which of the folder's stayed at home, and whose card the repository has."""

    url: str
    left_out: tuple[str, ...]
    card: str


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    remote_code: bool = False,
    facts: CardFacts | None = None,
) -> Pushed:
    """Uploads a folder and, where there is no README.md yet, a card; the folder itself is only read.

    After an upload that broke off the same call sends what is missing: the Hub knows files by their content.

    Args:
        repo_id: "owner/name"; the repository is made if need be. private: it must be seen by its owner only.
        revision: a branch, made if need be; "main" by default.
        remote_code: adds popen's modules, so that the model loads with `trust_remote_code` where popen is not.
        facts: what the folder does not say about itself, for the card; its base model is also named in what is sent of
            an adapter's configuration, so that the adapter loads where that model's folder is not.
    Raises:
        DataError: the folder or name is refused, an adapter's base model is a folder of this machine, the Hub refuses,
            or the connection broke off.
    """
    shared = recognise(folder)
    _check_name(repo_id)
    if is_offline_mode():
        raise DataError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if remote_code and shared.kind != "model":
        raise DataError(f"{folder}: only a model has code to export; leave --export-remote-code out")
    facts = facts or CardFacts()
    base = _shared_base(shared, facts.base_model) if shared.kind == "adapter" else None
    written = card(repo_id, shared, facts, remote_code)
    if CARD in shared.files:
        check_card((shared.path / CARD).read_text(encoding="utf-8"), str(shared.path / CARD), shared.repo_type)
    with TemporaryDirectory(prefix="popen-push-") as work:
        stage = Path(work) / "stage"
        _stage(shared, stage, remote_code)
        if base is not None:
            _name_base(stage / ADAPTER, base)
        try:
            return _upload(HfApi(), shared, stage, repo_id, private, revision, written)
        except DataError:
            raise
        except Exception as error:  # httpx, hf_xet and huggingface_hub each have their own
            raise _one_line(error, repo_id) from error


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DataError(f"{repo_id}: not a name the Hub allows ({' '.join(str(error).split())})") from None
    if repo_id.count("/") != 1:
        raise DataError(f"{repo_id}: give owner and name, as in my-organisation/{repo_id}")


def _shared_base(shared: SharedFolder, said: str | None) -> str:
    """The Hub id of an adapter's base model: what was said, or what its own configuration names."""
    named = said or read_json(shared.path / ADAPTER).get(BASE)
    if hub_id(named) is None:
        raise DataError(
            f"{shared.path}: its base model is {named}, which is not on the Hub under that name, so nobody else could "
            "load the adapter; push that model, too, and give its name: --base-model ORG/NAME"
        )
    return named


def _name_base(config: Path, base: str) -> None:
    """Puts a copy in the place of the linked configuration where it names another base model."""
    settings = read_json(config)
    if settings.get(BASE) != base:
        config.unlink()
        write_json(config, settings | {BASE: base})


def _stage(shared: SharedFolder, stage: Path, remote_code: bool) -> None:
    """Links the files to share into a folder of their own, with the exported code where it is wanted."""
    if remote_code:
        from popen.hub.remote_code import export_remote_code

        export_remote_code(shared.path, stage, link=True)
    for name in shared.files:
        if remote_code and name.endswith(".py"):
            continue  # of an earlier export
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to((shared.path / name).resolve())


def _upload(api: HfApi, shared: SharedFolder, stage: Path, repo_id, private, revision, written: str) -> Pushed:
    kind = shared.repo_type
    api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=kind).private:
        raise DataError(f"{repo_id}: exists and is public; make it private in its settings, or choose another name")
    if revision is not None and revision != "main":
        api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
    if CARD in shared.files:
        whose = "yours"
    elif api.file_exists(repo_id, CARD, repo_type=kind, revision=revision):
        whose = "the repository's own, kept as it is"
    else:
        (stage / CARD).write_text(written, encoding="utf-8")
        whose = "written for you; edit it on the Hub or put a README.md into the folder"
    done = api.upload_folder(
        repo_id=repo_id, repo_type=kind, folder_path=stage, revision=revision,
        commit_message=f"Push {shared.kind} with popen",
    )  # fmt: skip
    return Pushed(str(done.commit_url), shared.left_out, whose)


def _one_line(error: Exception, repo_id: str) -> DataError:
    """What the Hub or the connection said, and the way out."""
    reason = " ".join(str(error.__cause__ or error).split()).partition(" For more information")[0][:200]
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return DataError(
            f"{repo_id}: the Hub does not let you write there ({reason}); run `hf auth login` or set HF_TOKEN to a "
            "token that may write"
        )
    if status is not None and 400 <= status < 500:
        return DataError(f"{repo_id}: the Hub refused ({reason}); nothing of yours was changed")
    return DataError(
        f"{repo_id}: the upload broke off ({type(error.__cause__ or error).__name__}: {reason}); "
        "run the same command again, it sends only what is missing"
    )
