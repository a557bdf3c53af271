"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Updates of hidden matrices are orthogonalised momentum (Jordan et al. 2024), all others are AdamW's.

    Both parts share their parameter groups with this optimizer, so a schedule scales both learning rates alike.

    Args:
        matrices: 2-D weights of hidden layers. decayed, plain: all other parameters, with and without weight decay.
        learning_rate, betas: AdamW's. muon_learning_rate: of the matrices, about 20 times AdamW's.
    """

    def __init__(self, matrices, decayed, plain, learning_rate, muon_learning_rate, betas, weight_decay):
        others = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.muon = torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay)
        self.adamw = torch.optim.AdamW(others, lr=learning_rate, betas=betas, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the weights Muon is for: linear layers, without embeddings and the output head."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and min(module.weight.shape) > 1
    }
