"""Pictures of views: real images beside what a role's chain of agents makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.config import LearnedSettings, RoleAgents, Settings
from rolekd_ray.errors import ConfigError
from rolekd_ray.files import write_atomically
from rolekd_ray.policy.agents import chain_text, parse_chain
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.reporting.pictures import Block, Grid, png
from rolekd_ray.reporting.tensorboard import FOLDER, PICTURES, add_pictures
from rolekd_ray.roles import Role
from rolekd_ray.search.viewed import Viewed, find_viewed
from rolekd_ray.storage import Place, place
from rolekd_ray.training.batch import Batch, Source, decides
from rolekd_ray.training.chains import Chain
from rolekd_ray.training.checkpoint import has_checkpoint, load_checkpoint
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.learned import fitted_vae, new_learned
from rolekd_ray.training.views import Views


def draw_views(
    what: str,
    output: Place | str,
    *,
    agents: str | None = None,
    role: Role | None = None,
    schedule: Schedule | None = None,
    epoch: int | None = None,
    images: int = 8,
    draws: int = 3,
    tensorboard: Place | None = None,
    overrides: Sequence[str] = (),
) -> list[Place]:
    """Draw training images beside both roles' views of them; return what was written: the PNG, TensorBoard's folder.

    A row per image; the image itself, then columns per role: its view at `draws` epochs in a row, under the policies of
    each. With a learned agent, before that the same views without it. With `pick`, each epoch's candidates, for which
    ones are kept only a batch and its networks can say.

    Args:
        what: see `find_viewed`.
        output: the PNG file.
        agents: a chain as text, in place of what settings or policies say.
        role: whose chain `agents` is; None: both roles'.
        schedule: in place of the policies that belong to `what`.
        epoch: the first one, from 0; None: such that the last one of the policies is the last shown.
        images: rows. The first images that are trained on, one of each class, then a second one, ….
        draws: epochs. Past the end of a schedule its last policy holds.
        tensorboard: folder that also gets a picture per role, `views/<role>`, at step `epoch`; None: of a run its
            `tensorboard/views`, which goes with the curves when its search is opened anew; else nowhere.
        overrides: of settings, `key=value`.

    Raises:
        InputError: what is wrong; nothing was written.
    """
    output, forced = place(output), _forced(agents, role)
    viewed = find_viewed(what, overrides, schedule)
    viewed = replace(viewed, settings=_with_chains(viewed.settings, forced))
    epochs = _epochs(viewed.epochs, epoch, draws)
    data = open_training_data(viewed.settings.data, train=viewed.train)
    if images > len(data.train):
        raise ConfigError(f"--images: got {images}; expected at most {len(data.train)}, for so many are trained on")
    indices = first_of_each_class(data.image_set.labels, data.train, images)
    gallery = _Gallery(viewed, _source(data, viewed), indices, epochs, forced)
    originals = Block(["image"], ["as it is"], _arranged([data.image_set.images[indices]]))
    of_roles = {each: gallery.blocks(each) for each in Role}
    names = [data.image_set.class_names[label] for label in data.image_set.labels[indices]]
    every = [originals, *(block for blocks in of_roles.values() for block in blocks)]
    write_atomically(output, png(Grid(names, every).draw()))
    if tensorboard is None and viewed.run is not None:
        tensorboard = viewed.run / FOLDER / PICTURES
    if tensorboard is None:
        return [output]
    pictures = {f"views/{each}": Grid(names, [originals, *blocks]).draw() for each, blocks in of_roles.items()}
    add_pictures(tensorboard, pictures, step=epochs.start)
    return [output, tensorboard]


def first_of_each_class(labels: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the first images of a part, one of each class, then the second of each, ….

    Args:
        labels: of the whole dataset, (N,) int64.
        places: the part, ascending, (P,) int64.
        count: how many, at most P.

    Returns:
        Their places, (count,) int64.
    """
    seen: dict[int, int] = {}
    ranked = []
    for at, label in zip(places.tolist(), labels[places].tolist()):
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, at))
    return torch.tensor([at for *_, at in sorted(ranked)[:count]])


def pixels_of(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return normalised views (N, C, H, W) as pixels, uint8; what lies outside of 0..255 is cut off."""
    values = views.double() * std.double().view(-1, 1, 1) + mean.double().view(-1, 1, 1)
    return (values * 255).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class _Gallery:
    """Makes the blocks of a role; `forced` holds the roles whose chain was given, whatever evolved."""

    viewed: Viewed
    source: Source
    indices: Tensor
    epochs: range
    forced: Mapping[Role, tuple[str, ...]]

    def blocks(self, role: Role) -> list[Block]:
        """Return the role's view at each epoch; if it holds a learned agent, before it the view without."""
        settings: RoleAgents = getattr(self.viewed.settings.agents, role)
        policies = [self._policies(role, epoch) for epoch in self.epochs]
        chains = [self.source.views.chain(settings, each) for each in policies]
        names = [settings.evolved(each[0][1].scalars, each[0][1].choices).chain for each in policies]
        silent = not any(policy.firing() for each in policies for _, policy in each)
        notes = ["policy: no op can fire"] if silent and any("policy" in chain for chain in names) else []
        if any(chain.pick for chain in chains):
            notes.append("pick: all candidates, before any is picked")
        learned = next((chain.learned for chain in chains if chain.learned is not None), None)
        if learned is None:
            return [self._block(role, chains, None, [f"{role} view", _chains_text(names), *notes])]
        agent, state = self._learned(role, learned)
        without = [tuple(name for name in chain if name != "learned") or ("none",) for chain in names]
        return [
            self._block(role, chains, None, [f"{role} view, before learned", _chains_text(without), *notes]),
            self._block(role, chains, agent, [f"{role} view", _chains_text(names), *notes, state]),
        ]

    def _block(self, role: Role, chains: Sequence[Chain], agent: LearnedAgent | None, title: list[str]) -> Block:
        columns, made = [], []
        for epoch, chain in zip(self.epochs, chains):
            batch = Batch(self.source, self.indices, torch.arange(len(self.indices)), epoch, {role: chain}, agent)
            runs = chain.pick.runs if chain.pick is not None else 1
            for run in range(runs):
                columns.append(f"epoch {epoch}" + f" #{run + 1}" * (chain.pick is not None))
                made.append(batch.view(role, role, candidate=run))
        views = self.source.views
        return Block(title, columns, _arranged([pixels_of(view, views.mean, views.std) for view in made]))

    def _policies(self, role: Role, epoch: int) -> list[tuple[float, Policy]]:
        policies = self.viewed.policies_at(role, epoch)
        if role not in self.forced:
            return policies
        return [
            (weight, replace(policy, choices={k: v for k, v in policy.choices.items() if k != "agents"}))
            for weight, policy in policies
        ]

    def _learned(self, role: Role, settings: LearnedSettings) -> tuple[LearnedAgent, str]:
        """Return the learned agent, and what state it is in: the checkpoint's, or as a training begins."""
        make, state = partial(new_learned, settings, self.source, seed=self.viewed.settings.seed), self.viewed.state
        if state is not None and role == decides(self.viewed.settings.distill.view_mode) and has_checkpoint(state):
            tree, _ = load_checkpoint(state)
            if "learned" in tree:
                agent = make(vae=None)
                agent.load_tree(tree["learned"])
                return agent, f"learned: {agent.steps} steps, of {state.name}"
        vae = fitted_vae(self.source, seed=self.viewed.settings.seed) if "vae" in settings.parts else None
        return make(vae=vae), "learned: fresh, 0 steps"


def _forced(agents: str | None, role: Role | None) -> dict[Role, tuple[str, ...]]:
    if agents is None:
        if role is not None:
            raise ConfigError(
                f"--role: got {str(role)!r} without --agents; expected a chain, which is then that role's"
            )
        return {}
    problems: list[str] = []
    chain = parse_chain(agents, "--agents", problems)
    if problems:
        raise ConfigError(*problems)
    return {each: chain for each in Role if role in (None, each)}


def _with_chains(settings: Settings, forced: Mapping[Role, tuple[str, ...]]) -> Settings:
    agents = settings.agents
    new = {str(role): getattr(agents, role).model_copy(update={"chain": chain}) for role, chain in forced.items()}
    return settings.model_copy(update={"agents": agents.model_copy(update=new)})


def _epochs(known: range, epoch: int | None, draws: int) -> range:
    if epoch is None:
        epoch = max(known.start, known.stop - draws)
    if epoch not in known:
        raise ConfigError(
            f"--epoch: got {epoch}; expected {known.start} to {known.stop - 1}, which the policies are for"
        )
    return range(epoch, epoch + draws)


def _source(data: TrainingData, viewed: Viewed) -> Source:
    settings, image_set = viewed.settings, data.image_set
    views = Views(settings.base_augmentation, viewed.space, *data.statistics, seed=settings.seed)
    return Source(image_set.images, data.labels, data.train, image_set.num_classes, views)


def _chains_text(chains: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(dict.fromkeys(map(chain_text, chains)))


def _arranged(images: Sequence[Tensor]) -> np.ndarray:
    """Return columns (N, C, H, W) as a block's images (columns, N, H, W, C)."""
    return torch.stack(list(images)).permute(0, 1, 3, 4, 2).contiguous().numpy()
