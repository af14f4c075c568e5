"""How PEFT learns of `LORAXS`: `register_peft_method` takes only names that `PeftType` has, so it is given one."""

from __future__ import annotations

import warnings

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

NAME = "LORAXS"
PREFIX = "loraxs_"


def _peft_type() -> PeftType:
    """Return `PeftType.LORAXS`, adding the member when it is not there.

    An enum is closed once its class exists; these are the three tables and the attribute that CPython's `EnumType`
    fills for each member, and all that lookup by value, by name and iteration read.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    own = {"_name_": NAME, "_value_": NAME, "_sort_order_": len(PeftType._member_names_), "__objclass__": PeftType}
    vars(member).update(own)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    type.__setattr__(PeftType, NAME, member)
    return member


LORAXS = _peft_type()

# PEFT 0.21.2 asks each model for this name, which transformers 5.24 has deprecated; a user can do nothing about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def register(config_cls: type, model_cls: type) -> None:
    """Make PEFT build `model_cls` for configs of `config_cls`. A second call does nothing."""
    if LORAXS not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
