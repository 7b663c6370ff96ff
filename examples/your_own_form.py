# %% [markdown]
# # Your own form of parameters
#
# A form says what is generated for a layer, how it starts, and how the layer computes with it. This one generates one
# gain for each output, which starts at 1, so that an untrained generator changes nothing. A package of yours offers it
# to everybody by an entry point `lit_mmpg.forms`.

# %%
import torch
from torch import nn

import lit_mmpg
from lit_mmpg.forms.base import Form, Part, Zero


class Gain(Form):
    """``gain [out]`` -> ``(1 + gain) * (W x + b)``."""

    name, summary = "gain", "gain [out]: (1 + gain) * (W x + b)"

    def parts(self, layer, rank):
        return (Part("gain", layer.channels, Zero()),)

    def apply(self, layer, x, static, own, devices):  # `over` spreads one value a channel, of one device or of several
        return layer.over(torch.mul, layer.static(x), 1 + own[0], devices)


# %% [markdown]
# Any module takes it, here a small convolutional network; other layers may have other forms.

# %%
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
pictures = torch.rand(2, 3, 16, 16)
static = network(pictures)
net = lit_mmpg.adaptable(network, targets=["0", "4"], form={"0": Gain(), "*": "low_rank"}, rank=2)
print([(entry.name, entry.shape) for entry in net.spec])
assert torch.equal(net(pictures), static)  # without parameters the module is what it was, bit for bit

# %% [markdown]
# `verify` tries whether every target changes the output, and whether a batch of devices equals one device after the
# other. If so, devices are batched from then on.

# %%
found = net.verify(pictures, devices=3)
print(f"batched: {found.batch}, largest difference {found.largest_difference:.1e}, moved: {found.moved}")
parameters = net.random_parameters(devices=3)
together = net(pictures.expand(3, *pictures.shape), parameters=parameters)  # [3, 2, 5]
for device in range(3):
    alone = net(pictures, parameters=[tensor[device] for tensor in parameters])
    torch.testing.assert_close(together[device], alone)
