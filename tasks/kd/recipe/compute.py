"""The section of a recipe that says how the machine is used."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.kd.recipe.fields import Positive, PositiveFloat, Section


class Compute(Section):
    """How the machine is used. Not tracked: it changes nothing but rounding and dropout's draws."""

    processes: Annotated[int, Field(ge=1, le=64, description="of a training, on each machine")]
    threads: Annotated[Positive | None, Field(description="per process, or null for all cores")]
    machines: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="that train together; the stage is started on each of them, with the same "
            "artifacts, and the first keeps checkpoints and results",
        ),
    ]
    machine_rank: Annotated[
        int | None,
        Field(ge=0, description="which of several machines this is, 0 the first; null if alone"),
    ]
    rendezvous: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$",
            description="`host:port` of the first of several machines, free there; null if alone",
        ),
    ]
    peer_timeout_s: Annotated[
        PositiveFloat,
        Field(
            description="seconds that a process waits for the others before the training stops; "
            "longer than a step, an evaluation and a checkpoint"
        ),
    ]
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"],
        Field(description="of the student's passes; the levels stay float32; fp16 needs a GPU"),
    ]
    gradient_checkpointing: Annotated[
        bool, Field(description="layers are computed again in the backward pass: less memory")
    ]
    compile: Annotated[
        bool,
        Field(
            description="torch.compile for the trained model's layers; not with levels that read "
            "attention or relations"
        ),
    ]
    grad_norm_every: Annotated[
        Positive | None,
        Field(description="steps between measurements of each level's own gradient norm, or null"),
    ]
    profile_step: Annotated[
        Positive | None,
        Field(description="the step of which .work/profiles gets a profile, or null"),
    ]
    checkpoint_every_s: Annotated[
        PositiveFloat, Field(description="seconds between checkpoints of a training")
    ]
    live_curves_every_s: Annotated[
        PositiveFloat | None,
        Field(
            description="seconds between looks at a running training whose figures go to MLflow at "
            "once, in a run of their own; null: they go there when the stages are done"
        ),
    ]
    copies_gib: Annotated[
        PositiveFloat,
        Field(description="kept on this machine of a store elsewhere (STILLHOUSE_STORE is a URL)"),
    ]

    @model_validator(mode="after")
    def _several_machines_know_where_they_meet(self) -> Compute:
        if self.machines == 1:
            if self.machine_rank is not None or self.rendezvous is not None:
                raise ValueError("machine_rank and rendezvous must be null where machines is 1")
        elif self.machine_rank is None or self.rendezvous is None:
            raise ValueError(f"machines {self.machines} needs machine_rank and rendezvous")
        elif self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank {self.machine_rank} is not below machines {self.machines}"
            )
        return self
