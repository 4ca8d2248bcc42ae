"""What kinds of operations there are to a plan's seconds, and the built-in rates of each.

Rates are nanoseconds a unit, at four sizes: one thread of an AMD EPYC (1 MiB of L2, 32 MiB of L3), torch 2.13, float32,
as ``calibrate()`` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes of input and result together at which rates are measured.
SIZES = tuple(mib << 20 for mib in (1, 8, 48, 160))


@dataclass(frozen=True)
class Rate:
    """Nanoseconds a unit at each of :data:`SIZES`, forward and backward."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]


@dataclass(frozen=True)
class Few:
    """The same convolution with few channels: how its rate depends on their number."""

    kind: str
    kernel: int
    channels: int
    many_channels: int

    def intensity(self, channels: int, lanes: int) -> float:
        """Multiply-adds for every byte of input and result, with as many channels in as out, in float32."""
        padded = -(-channels // lanes) * lanes
        return padded * self.kernel / 8


#: Of kinds that are measured with many channels and with few.
FEW = {
    "convolution 2d": Few("narrow convolution 2d", 9, 8, 64),
    "convolution 3d": Few("narrow convolution 3d", 27, 8, 32),
    "1x1 convolution 2d": Few("narrow 1x1 convolution 2d", 1, 16, 128),
    "1x1 convolution 3d": Few("narrow 1x1 convolution 3d", 1, 16, 64),
}

BUILT_IN_RATES: dict[str, dict[str, Rate]] = {
    "contiguous": {
        "convolution 2d": Rate((0.0180, 0.0286, 0.0299, 0.0306), (0.0590, 0.0501, 0.0476, 0.0629)),
        "1x1 convolution 2d": Rate((0.0217, 0.0275, 0.0267, 0.0450), (0.0480, 0.0692, 0.0606, 0.0861)),
        "strided convolution 2d": Rate((0.0191, 0.0222, 0.0231, 0.0380), (0.0526, 0.0549, 0.0873, 0.1143)),
        "first convolution 2d": Rate((0.0201, 0.0228, 0.0523, 0.0517), (0.0254, 0.0262, 0.0397, 0.0420)),
        "depthwise convolution 2d": Rate((0.0363, 0.0330, 0.1143, 0.1875), (0.8623, 0.7508, 0.9160, 0.9805)),
        "transposed convolution 2d": Rate((0.0392, 0.0554, 0.2601, 0.2552), (0.0670, 0.0888, 0.1415, 0.2062)),
        "convolution 3d": Rate((0.0166, 0.0193, 0.0233, 0.0288), (0.0445, 0.0401, 0.0479, 0.0531)),
        "1x1 convolution 3d": Rate((0.0357, 0.0268, 0.0363, 0.0660), (0.1112, 0.0921, 0.1755, 0.1493)),
        "strided convolution 3d": Rate((0.0198, 0.0210, 0.0415, 0.0443), (0.0766, 0.0611, 0.1285, 0.1278)),
        "first convolution 3d": Rate((0.0421, 0.0319, 0.2100, 0.2015), (0.1128, 0.1006, 0.0825, 0.0871)),
        "depthwise convolution 3d": Rate((0.0784, 0.0780, 0.3313, 0.7006), (1.8573, 1.5303, 1.7313, 1.6462)),
        "transposed convolution 3d": Rate((0.0338, 0.0588, 0.2559, 0.2486), (0.0709, 0.0630, 0.1671, 0.1529)),
        "pointwise": Rate((0.0136, 0.0108, 0.0541, 0.2517), (0.0459, 0.0680, 0.2764, 0.2961)),
        "transcendental": Rate((0.0693, 0.0622, 0.0823, 0.3031), (0.1636, 0.1381, 0.1552, 0.3624)),
        "scale and shift": Rate((0.0572, 0.0567, 0.0569, 0.2921), (0.1147, 0.1475, 0.3744, 0.8690)),
        "affine": Rate((0.0269, 0.0206, 0.0373, 0.2705), (0.0882, 0.0862, 0.1043, 0.3066)),
        "layer norm": Rate((0.2337, 0.5241, 0.2892, 0.7530), (0.1705, 0.4881, 0.2157, 0.6438)),
        "statistics": Rate((0.1741, 0.0815, 0.2071, 0.6072), (0.3658, 0.3102, 0.4428, 1.7180)),
        "copy": Rate((0.0181, 0.0176, 0.0554, 0.3591), (0.0550, 0.0548, 0.0596, 0.2139)),
        "max pool 2d": Rate((1.4915, 1.5395, 1.5816, 1.7671), (0.1397, 0.1856, 0.1817, 0.5003)),
        "max pool 3d": Rate((0.8796, 0.9403, 0.9232, 0.9083), (0.1319, 0.1392, 0.1176, 0.4972)),
        "average pool": Rate((0.3478, 0.3879, 0.4013, 0.3943), (0.3679, 0.4541, 0.4091, 0.7578)),
        "nearest": Rate((0.3062, 0.1187, 0.4665, 0.4554), (0.1779, 0.1503, 0.1483, 0.1280)),
        "interpolation 2d": Rate((0.3370, 0.2965, 0.6416, 0.6566), (0.8293, 0.7630, 0.7201, 0.6829)),
        "interpolation 3d": Rate((1.2436, 1.1257, 1.5775, 1.5556), (1.3662, 1.2387, 1.1698, 1.1817)),
        "narrow convolution 2d": Rate((0.0220, 0.0345, 0.0813, 0.1048), (0.0850, 0.1000, 0.2164, 0.1652)),
        "narrow convolution 3d": Rate((0.0204, 0.0239, 0.0198, 0.0351), (0.1188, 0.1024, 0.1257, 0.1622)),
        "narrow 1x1 convolution 2d": Rate((0.0344, 0.0318, 0.0559, 0.1649), (0.1050, 0.1557, 0.1732, 0.4070)),
        "narrow 1x1 convolution 3d": Rate((0.0783, 0.0304, 0.0540, 0.1619), (0.2357, 0.1738, 0.1965, 0.4540)),
    },
    "channels_last": {
        "convolution 2d": Rate((0.0177, 0.0184, 0.0178, 0.0219), (0.0458, 0.0456, 0.0381, 0.0411)),
        "1x1 convolution 2d": Rate((0.0206, 0.0270, 0.0288, 0.0386), (0.0480, 0.0619, 0.0597, 0.0897)),
        "strided convolution 2d": Rate((0.0181, 0.0199, 0.0189, 0.0234), (0.0532, 0.0912, 0.0723, 0.0724)),
        "first convolution 2d": Rate((0.0187, 0.0207, 0.0347, 0.0330), (0.0236, 0.0251, 0.0228, 0.0229)),
        "depthwise convolution 2d": Rate((0.0278, 0.0377, 0.0364, 0.0815), (0.4209, 0.4295, 0.8852, 0.8985)),
        "transposed convolution 2d": Rate((0.0240, 0.0227, 0.0533, 0.0534), (0.0574, 0.0580, 0.0572, 0.0785)),
        "convolution 3d": Rate((0.0169, 0.0173, 0.0181, 0.0208), (0.0409, 0.0375, 0.0379, 0.0411)),
        "1x1 convolution 3d": Rate((0.0596, 0.0599, 0.1058, 0.2254), (0.1477, 0.1150, 0.1783, 0.2936)),
        "strided convolution 3d": Rate((0.0186, 0.0204, 0.0195, 0.0197), (0.0708, 0.0514, 0.0604, 0.0676)),
        "first convolution 3d": Rate((0.0419, 0.0342, 0.2014, 0.1903), (0.1143, 0.1007, 0.0941, 0.0993)),
        "depthwise convolution 3d": Rate((0.0387, 0.0222, 0.0442, 0.1280), (0.7477, 0.8831, 1.7517, 1.8131)),
        "transposed convolution 3d": Rate((0.0389, 0.0313, 0.0592, 0.0553), (0.0758, 0.0542, 0.0891, 0.0875)),
        "pointwise": Rate((0.0140, 0.0147, 0.0503, 0.2729), (0.0490, 0.0745, 0.0777, 0.2919)),
        "transcendental": Rate((0.0907, 0.0886, 0.0921, 0.3399), (0.1662, 0.1631, 0.1474, 0.4024)),
        "scale and shift": Rate((0.0170, 0.0161, 0.0442, 0.2900), (0.1091, 0.2302, 0.3453, 0.9975)),
        "affine": Rate((0.0392, 0.0318, 0.0434, 0.2928), (0.0931, 0.0733, 0.1468, 0.3474)),
        "layer norm": Rate((0.1607, 0.1529, 0.1600, 0.3718), (0.0796, 0.0781, 0.0803, 0.3204)),
        "statistics": Rate((0.3783, 0.3402, 1.5733, 2.8626), (0.4572, 0.4788, 0.9180, 1.6944)),
        "copy": Rate((0.0165, 0.0140, 0.0409, 0.3101), (0.0525, 0.0553, 0.0581, 0.1949)),
        "max pool 2d": Rate((0.0790, 0.0822, 0.0891, 0.3248), (0.0854, 0.1281, 0.5134, 0.4196)),
        "max pool 3d": Rate((0.0657, 0.0623, 0.0889, 0.2165), (0.0835, 0.1622, 0.4777, 0.4691)),
        "average pool": Rate((0.0301, 0.0264, 0.0517, 0.0469), (0.0628, 0.1009, 0.1054, 0.4020)),
        "nearest": Rate((0.0259, 0.0230, 0.3653, 0.3541), (0.0610, 0.0853, 0.0757, 0.1586)),
        "interpolation 2d": Rate((0.0533, 0.0564, 0.4342, 0.3778), (0.1084, 0.1578, 0.1165, 0.2946)),
        "interpolation 3d": Rate((0.1189, 0.1211, 0.4796, 0.5213), (0.2580, 0.2822, 0.2429, 0.2422)),
        "narrow convolution 2d": Rate((0.0203, 0.0197, 0.0189, 0.0351), (0.0522, 0.0454, 0.0410, 0.0556)),
        "narrow convolution 3d": Rate((0.0203, 0.0231, 0.0182, 0.0246), (0.0721, 0.0609, 0.0391, 0.0449)),
        "narrow 1x1 convolution 2d": Rate((0.0326, 0.0295, 0.0631, 0.1734), (0.1173, 0.1800, 0.5075, 0.4101)),
        "narrow 1x1 convolution 3d": Rate((0.1770, 0.0860, 0.2790, 0.4968), (0.4240, 0.2610, 0.5636, 0.8508)),
    },
}
