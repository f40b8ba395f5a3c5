"""How a study's artifacts travel between machines that share no storage: by the results of the steps that made them."""

import hashlib
import pickle
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tlkd.errors import BadInput
from tlkd.folder import StudyFolder, plan, teacher_fits
from tlkd.ray_engine import pack_folders, unpack_folders
from tlkd.specs import canonical_hash
from tlkd.study import Context, published_by

DATA = "data"  # what every step needs: the decoded images


@dataclass(frozen=True)
class Carried:
    """Carries what a step has published, in the study's folder or in the cache, to the steps that need it."""

    def context_for(self, context: Context) -> Context:
        """The context with a folder and a cache of this node's own, below the folder for temporary files."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        of = f"{context.out} {context.images} {canonical_hash(context.study)} {node}"
        name = hashlib.sha256(of.encode()).hexdigest()[:16]
        root = Path(tempfile.gettempdir()) / f"tlkd-{name}"
        if not (root / "out" / "study.yaml").is_file():
            StudyFolder(root / "out").prepare(context.study, {})
        return replace(context, out=root / "out", cache=root / "cache")

    def pack(self, context: Context, job: str) -> bytes:
        """The folders that a step has published, as bytes."""
        in_cache = [f"images/{context.images}"] if job == DATA else published_by(context, job)
        kind, _, name = job.partition(" ")
        folder, in_out = StudyFolder(context.out), []
        runs = {run.run_id: run for run in plan(context.study)}
        if kind == "run":
            in_out = [folder.run_path(runs[name])]
        elif kind == "robustness":
            in_out = [folder.robustness_path(runs[name.removeprefix("of ")])]
        elif kind == "teacher":
            in_out = [folder.teacher_path(fit) for fit in teacher_fits(context.study) if fit.fit_id == name]
        below = [path.relative_to(context.out).as_posix() for path in in_out]
        return pickle.dumps((pack_folders(context.cache, in_cache), pack_folders(context.out, below)))

    def unpack(self, context: Context, packed: bytes) -> None:
        """Put them where they belong here; what is there already stays."""
        in_cache, in_out = pickle.loads(packed)
        try:
            unpack_folders(context.cache, in_cache)
            unpack_folders(context.out, in_out)
        except ValueError as error:
            raise BadInput(f"--engine ray: a result cannot be unpacked: {error}") from error
